//! `report.md`: the summary first, then the machine and the programs, then every row with all its contestants.

use std::fmt::Write as _;

use super::{Entrant, Entry, Figure, Outcome, ROUNDS_MIN, Range, Report, Row, Table, Verdict, plot};
use crate::contest::{Contestant, Role};

/// The whole report.
pub(super) fn render(report: &Report) -> String {
    let mut text = format!(
        "# Millrace beside other proxies\n\n{}{}\n## Who and where\n\n",
        method(report),
        summary(report)
    );
    text += &host(report);
    text += &entrants(&report.entrants);
    for row in &report.rows {
        text += &section(row);
    }
    text
}

/// One line for each judged figure.
pub(super) fn summary(report: &Report) -> String {
    let mut text = String::from(
        "| # | row | figure | ours | best rival | ours / rival | ours / floor | verdict | targets |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for row in &report.rows {
        for table in row.tables.iter().filter(|table| table.verdict.is_some() || !table.targets.is_empty()) {
            text += &summary_line(row, table);
        }
    }
    let failures: Vec<String> = report.rows.iter().filter_map(failures_in_short).collect();
    if !failures.is_empty() {
        let _ = write!(text, "\nNot all was as it should be:\n\n{}", failures.concat());
    }
    text
}

fn method(report: &Report) -> String {
    let settings = &report.settings;
    let few = if settings.rounds < ROUNDS_MIN {
        format!(
            " **{} rounds are too few to call anything won: take the verdicts as hints.**",
            settings.rounds
        )
    } else {
        String::new()
    };
    format!(
        "Made {} with {} interleaved rounds of {} s for each row (after {} s of warm-up), one worker for each proxy, \
         pinned to CPU {}; load generator ({}) and origin share CPU {}. Figures are medians with the range over all \
         rounds. A row is *won* only where our range and that of every rival do not overlap, and *lost* where a \
         rival's range lies wholly on the better side of ours; everything else is *level*. Whoever answered wrongly, \
         died or was missing counts for nothing and is named.{few}\n\n\
         CPU times are the scheduler's own account of the proxy's processes (`schedstat`), over the measured time. \
         The floor is a relay on a bare ring that knows no HTTP. nginx's TCP relay and the other bare relays are shown \
         for comparison and take part in no verdict, since they cannot route a request.\n\n",
        report.date,
        settings.rounds,
        settings.duration_s,
        settings.warmup_s,
        settings.proxy_cpu,
        settings.tool,
        settings.load_cpu,
    )
}

fn summary_line(row: &Row, table: &Table) -> String {
    let ours = table.entries.iter().find(|entry| entry.contestant.role() == Role::Ours);
    let rival = table.best_rival;
    let of_rival = |entry: &&Entry| Some(entry.contestant) == rival;
    format!(
        "| {} | {} | {}{} | {} | {} | {} | {} | {} | {} |\n",
        row.number,
        row.name,
        table.figure.title(),
        in_unit(table.figure),
        ours.map_or_else(dash, |entry| range(entry.range)),
        table
            .entries
            .iter()
            .find(of_rival)
            .map_or_else(dash, |entry| { format!("{} {}", entry.contestant, range(entry.range)) }),
        ratio(table.entries.iter().find(of_rival).and_then(|entry| entry.ours_over)),
        ratio(ours.and_then(|entry| entry.over_floor)),
        table.verdict.map_or_else(dash, |verdict| verdict_word(verdict).to_owned()),
        if table.targets.is_empty() { dash() } else { outcomes(&table.targets) },
    )
}

fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Won => "**won**",
        Verdict::Level => "level",
        Verdict::Lost => "**lost**",
        Verdict::Failed => "**failed**",
        Verdict::NoRival => "no rival",
    }
}

fn outcomes(outcomes: &[Outcome]) -> String {
    let words = outcomes.iter().map(|outcome| {
        let said = match outcome.is_met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "not measured",
        };
        let actual = match (outcome.actual, outcome.is_met) {
            (Some(actual), _) => format!(" ({actual:.2})"),
            (None, Some(_)) => " (around zero)".to_owned(),
            (None, None) => String::new(),
        };
        format!("{}: {said}{actual}", outcome.target)
    });
    words.collect::<Vec<_>>().join("; ")
}

fn failures_in_short(row: &Row) -> Option<String> {
    let mut seen: Vec<Contestant> = row.failures.iter().map(|failure| failure.contestant).collect();
    seen.dedup();
    let first_of = |contestant: &Contestant| {
        let failure = row.failures.iter().find(|failure| failure.contestant == *contestant)?;
        Some(format!("- {}, {}: {} (round {})\n", row.name, contestant, failure.fault, failure.round))
    };
    let lines: Vec<String> = seen.iter().filter_map(first_of).collect();
    (!lines.is_empty()).then(|| lines.concat())
}

fn host(report: &Report) -> String {
    let host = &report.host;
    let mut text = format!(
        "Linux {}, {} (CPUs {:?}), {:.1} GiB of memory, at most {} open files in a process.\n\n",
        host.kernel,
        host.cpu_model,
        host.cpus,
        host.memory_bytes as f64 / f64::from(1 << 30),
        host.open_files_max
    );
    text += "<details><summary>kernel settings</summary>\n\n```text\n";
    for (name, value) in &host.sysctls {
        let _ = writeln!(text, "{name} = {value}");
    }
    text + "```\n\n</details>\n\n"
}

fn entrants(entrants: &[Entrant]) -> String {
    let mut text = String::from("| contestant | as | version | program |\n|---|---|---|---|\n");
    for entrant in entrants {
        let role = match entrant.role {
            Role::Ours => "ours",
            Role::Rival => "rival",
            Role::Relay => "relay",
            Role::Floor => "floor",
        };
        let (version, program) = match (&entrant.program, &entrant.fault) {
            (Some(program), _) => (program.version.clone(), program.path.display().to_string()),
            (None, Some(fault)) => (dash(), fault.to_string()),
            (None, None) => (dash(), dash()),
        };
        let _ = writeln!(text, "| {} | {role} | {version} | {program} |", entrant.contestant);
    }
    text
}

fn section(row: &Row) -> String {
    let mut text = format!("\n## {} · {}: {}\n", row.number, row.name, row.title);
    if plot::has_bars(row) {
        let _ = write!(text, "\n![{}]({})\n", row.name, plot::file_name(row));
    }
    text += &table_of(row);
    for failure in &row.failures {
        let _ = write!(text, "\n- **{}**, round {}: {}", failure.contestant, failure.round, failure.fault);
    }
    for note in &row.notes {
        let _ = write!(text, "\n- {note}");
    }
    text + "\n"
}

/// Contestants down, figures across.
fn table_of(row: &Row) -> String {
    let Some(main) = row.main_table() else { return String::new() };
    let titles = row.tables.iter().map(|table| format!("{}{}", table.figure.title(), in_unit(table.figure)));
    let mut text = format!("\n| | {} | over the floor |\n", titles.collect::<Vec<_>>().join(" | "));
    text += &format!("|---|{}---|\n", "---|".repeat(row.tables.len()));
    for (index, entry) in main.entries.iter().enumerate() {
        let struck = if entry.counts { "" } else { " (does not count)" };
        let cells = row.tables.iter().map(|table| range(table.entries[index].range));
        let cells = cells.collect::<Vec<_>>().join(" | ");
        let _ = writeln!(text, "| {}{struck} | {cells} | {} |", entry.contestant, ratio(entry.over_floor));
    }
    text
}

fn in_unit(figure: Figure) -> String {
    if figure.unit().is_empty() { String::new() } else { format!(", {}", figure.unit()) }
}

fn range(range: Option<Range>) -> String {
    let Some(Range { min, median, max }) = range else { return dash() };
    format!("{} ({} – {})", number(median), number(min), number(max))
}

/// Three digits that say something.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(dash, |ratio| format!("{ratio:.2}"))
}

fn dash() -> String {
    "–".to_owned()
}
