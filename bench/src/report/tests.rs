//! A report made of fixed figures, looked at as a reader would.

use super::*;
use crate::floor::Kind;

const FLOOR: Contestant = Contestant::Relay(Kind::Ring);

fn samples(ours: &[f64]) -> Vec<(Contestant, Vec<f64>)> {
    vec![
        (Contestant::Millrace, ours.to_vec()),
        (Contestant::Nginx, vec![11.0, 12.0, 13.0, 12.5, 11.5]),
        (Contestant::Haproxy, vec![14.0, 15.0, 15.5, 14.5, 16.0]),
        (FLOOR, vec![8.0, 8.5, 8.2, 8.1, 8.3]),
    ]
}

const TARGETS: [Target; 4] = [
    Target { figure: Figure::CpuPerRequestUs, limit: Limit::Times(0.85, Contestant::Nginx) },
    Target { figure: Figure::CpuPerRequestUs, limit: Limit::TimesBest(0.7) },
    Target { figure: Figure::CpuPerRequestUs, limit: Limit::TimesFloor(1.25) },
    Target { figure: Figure::BodyGbPerCpuS, limit: Limit::TimesBest(1.0) },
];

fn cpu(samples: &[(Contestant, Vec<f64>)], struck: &[Contestant]) -> Table {
    Table::new(Figure::CpuPerRequestUs, samples, struck, &TARGETS)
}

fn report(table: Table, failures: Vec<Failure>) -> Report {
    let host = Host {
        kernel: "6.1".to_owned(),
        cpu_model: "Some CPU".to_owned(),
        cpus: vec![0, 1],
        memory_bytes: 8 << 30,
        open_files_max: 20_000,
        sysctls: BTreeMap::from([("net.core.somaxconn".to_owned(), "4096".to_owned())]),
    };
    let settings = Settings {
        rounds: 5,
        duration_s: 2.0,
        warmup_s: 0.3,
        tool: "load".to_owned(),
        proxy_cpu: 0,
        load_cpu: 1,
    };
    let missing = Fault::Missing("there is no haproxy in PATH".to_owned());
    let program = Program { path: "/usr/sbin/nginx".into(), version: "1.22.1".to_owned() };
    let entrants = vec![
        Entrant { contestant: Contestant::Nginx, role: Role::Rival, program: Some(program), fault: None },
        Entrant { contestant: Contestant::Haproxy, role: Role::Rival, program: None, fault: Some(missing) },
    ];
    let row = Row {
        name: "get-64".to_owned(),
        number: 1,
        title: "small answers".to_owned(),
        tables: vec![table],
        failures,
        notes: vec!["a note".to_owned()],
    };
    let date = "Fri, 20 Nov 2026 16:00:00 GMT".to_owned();
    Report { format: FORMAT, date, host, settings, entrants, rows: vec![row] }
}

#[test]
fn the_best_rival_is_the_one_with_the_best_median() {
    let table = cpu(&samples(&[9.0, 9.5, 10.0, 9.2, 9.4]), &[]);
    assert_eq!((table.best_rival, table.verdict), (Some(Contestant::Nginx), Some(Verdict::Won)));
    let ratios: Vec<Option<f64>> = table.entries.iter().map(|entry| entry.ours_over).collect();
    assert!((ratios[1].unwrap() - 9.4 / 12.0).abs() < 1e-9, "{ratios:?}");
    assert!((table.entries[0].over_floor.unwrap() - 9.4 / 8.2).abs() < 1e-9);
}

#[test]
fn a_relay_is_nobodys_rival() {
    // The floor is far better than we are, and that loses nothing.
    let table = cpu(&[(Contestant::Millrace, vec![20.0]), (FLOOR, vec![8.0])], &[]);
    assert_eq!((table.best_rival, table.verdict), (None, Some(Verdict::NoRival)));
}

#[test]
fn whoever_had_a_fault_neither_wins_nor_is_beaten() {
    // nginx would have been best by far.
    let mut samples = samples(&[9.0; 5]);
    samples[1].1 = vec![1.0; 4];
    let table = cpu(&samples, &[Contestant::Nginx]);
    assert_eq!((table.best_rival, table.verdict), (Some(Contestant::Haproxy), Some(Verdict::Won)));
    assert!(!table.entries[1].counts && table.entries[1].ours_over.is_none());
    assert_eq!(table.targets[0].is_met, None, "there is no nginx to hold it against");

    let ours_died = cpu(&samples, &[Contestant::Millrace]);
    assert_eq!(ours_died.verdict, Some(Verdict::Failed));
    assert!(ours_died.targets.iter().all(|outcome| outcome.is_met.is_none()));
}

#[test]
fn targets_are_met_or_missed_by_medians() {
    let table = cpu(&samples(&[9.0, 9.5, 10.0, 9.2, 9.4]), &[]);
    let met: Vec<Option<bool>> = table.targets.iter().map(|outcome| outcome.is_met).collect();
    assert_eq!(met, [Some(true), Some(false), Some(true)]);
    assert_eq!(table.targets[0].target, "≤ 0.85 × nginx");

    let rates = [(Contestant::Millrace, vec![3.0]), (Contestant::Nginx, vec![2.0])];
    let table = Table::new(Figure::BodyGbPerCpuS, &rates, &[], &TARGETS);
    assert_eq!(table.targets[0].target, "≥ 1 × the best rival");
    assert_eq!((table.targets[0].is_met, table.verdict), (Some(true), Some(Verdict::Won)));
}

#[test]
fn where_a_rival_adds_nothing_there_is_no_ratio_but_an_answer() {
    let target = [Target { figure: Figure::AddedP999Us, limit: Limit::TimesBest(1.0) }];
    let outcome = |ours: f64, rival: f64| {
        let samples = [(Contestant::Millrace, vec![ours; 5]), (Contestant::Nginx, vec![rival; 5])];
        let table = Table::new(Figure::AddedP999Us, &samples, &[], &target);
        (table.targets[0].actual, table.targets[0].is_met)
    };
    assert_eq!(outcome(-400.0, -150.0), (None, Some(true)));
    assert_eq!(outcome(30.0, -150.0), (None, Some(false)));
    assert_eq!(outcome(30.0, 40.0), (Some(0.75), Some(true)));
    let samples = [(Contestant::Millrace, vec![-1.0; 5]), (Contestant::Nginx, vec![2.0; 5])];
    let table = Table::new(Figure::AddedP999Us, &samples, &[], &target);
    let text = markdown::render(&report(table, Vec::new()));
    assert!(text.contains("≤ 1 × the best rival: met (around zero)"), "{text}");
}

#[test]
fn a_report_shows_everybody_and_every_fault() {
    let failure = Failure {
        contestant: Contestant::Haproxy,
        round: 2,
        fault: Fault::Died("exit status: 3; it said: out of luck".to_owned()),
    };
    let mut samples = samples(&[9.0, 9.5, 10.0, 9.2, 9.4]);
    samples[2].1.clear();
    let text = markdown::render(&report(cpu(&samples, &[Contestant::Haproxy]), vec![failure]));
    for part in [
        "| 1 | get-64 | CPU per request, µs | 9.40 (9.00 – 10.0) | nginx 12.0 (11.0 – 13.0) | 0.78 | 1.15 | **won** |",
        "≤ 0.85 × nginx: met (0.78)",
        "- get-64, haproxy: died: exit status: 3; it said: out of luck (round 2)",
        "| haproxy (does not count) | – | – |",
        "| haproxy | rival | – | not installed: there is no haproxy in PATH |",
        "| nginx | rival | 1.22.1 | /usr/sbin/nginx |",
        "net.core.somaxconn = 4096",
        "![get-64](get-64.svg)",
        "- a note",
    ] {
        assert!(text.contains(part), "{part}\n\nis not in\n\n{text}");
    }
    assert!(!text.contains("too few"), "{text}");
}

#[test]
fn few_rounds_are_said_to_be_few() {
    let mut report = report(cpu(&samples(&[9.0; 5]), &[]), Vec::new());
    report.settings.rounds = ROUNDS_MIN - 1;
    assert!(markdown::render(&report).contains("4 rounds are too few"));
}

#[test]
fn a_report_is_written_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let report = report(cpu(&samples(&[9.0; 5]), &[]), Vec::new());
    report.write(&dir.path().join("deep/folder")).unwrap();
    let read = |name: &str| fs::read_to_string(dir.path().join("deep/folder").join(name)).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&read("report.json")).unwrap(), report);
    let drawing = read("get-64.svg");
    assert!(drawing.starts_with("<svg") && drawing.contains("haproxy"), "{drawing}");
    assert_eq!(drawing.matches("<rect").count(), 5, "a ground and four bars: {drawing}");
}

#[test]
fn nothing_measured_is_a_report_without_a_picture() {
    let dir = tempfile::tempdir().unwrap();
    let nothing: Vec<(Contestant, Vec<f64>)> = vec![(Contestant::Millrace, Vec::new())];
    let report = report(cpu(&nothing, &[Contestant::Millrace]), Vec::new());
    report.write(dir.path()).unwrap();
    assert!(!dir.path().join("get-64.svg").exists());
    assert!(fs::read_to_string(dir.path().join("report.md")).unwrap().contains("**failed**"));
}
