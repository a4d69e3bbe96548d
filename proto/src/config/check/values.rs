//! Words, numbers, durations and sizes: from what was written to what it is, within the range that makes sense.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use crate::config::file::value::{At, DurationText, SizeText};
use crate::config::planned::PlannedWord;
use crate::config::problem::Problems;
use crate::config::read::suggest::{Meant, meant, quote};
use crate::config::words::Words;

/// Why a value is not taken, and what to write.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::config) struct Refusal {
    pub(in crate::config) message: String,
    pub(in crate::config) help: Option<String>,
}

impl Refusal {
    pub(in crate::config) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: Some(help.into()) }
    }
}

/// The value; a refusal is noted.
pub(in crate::config) fn accept<T>(
    result: Result<T, Refusal>,
    at: &Range<usize>,
    problems: &mut Problems,
) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(refusal) => {
            problems.wrong(at, refusal.message, refusal.help);
            None
        }
    }
}

/// One of the words of the config language.
pub(in crate::config) fn word<T: Copy>(
    field: &Option<At<String>>,
    what: &str,
    words: &Words<T>,
    default: T,
    problems: &mut Problems,
) -> T {
    let Some(At { value: written, span }) = field else { return default };
    if let Some(value) = words.value(written) {
        return value;
    }
    let names = words.names();
    if let Some(planned) = PlannedWord::find(words.planned, written) {
        let named = if planned.what.is_empty() { String::new() } else { format!(" ({})", planned.what) };
        let message = format!(
            "this version of Millrace does not support the {what} {}{named}: it is planned, not there yet",
            quote(written)
        );
        problems.wrong(span, message, until_then(planned, &names));
        return default;
    }
    let planned = words.planned.iter().flat_map(|planned| planned.words.iter().copied());
    let help = match meant(written, names.iter().copied(), planned) {
        Meant::Known(word) => format!("did you mean \"{word}\"?"),
        Meant::Planned(word) => {
            let then = PlannedWord::find(words.planned, word).map(|planned| until_then(planned, &names));
            format!("did you mean \"{word}\"? It is planned, not there yet; {}", then.unwrap_or_default())
        }
        Meant::Unclear => format!("write one of: {}", names.join(", ")),
    };
    problems.wrong(span, format!("unknown {what} {}", quote(written)), help);
    default
}

fn until_then(planned: &PlannedWord, names: &[&str]) -> String {
    if planned.help.is_empty() {
        format!("it supports: {}", names.join(", "))
    } else {
        planned.help.to_owned()
    }
}

/// An integer of that range, as whatever type holds the range.
pub(in crate::config) fn integer<T: TryFrom<i64>>(
    field: &Option<At<i64>>,
    range: RangeInclusive<i64>,
    default: T,
    problems: &mut Problems,
) -> T {
    let Some(At { value, span }) = field else { return default };
    if range.contains(value)
        && let Ok(value) = T::try_from(*value)
    {
        return value;
    }
    let message = format!("{value} is out of range");
    problems.wrong(
        span,
        message,
        format!("write a number from {} to {}, or leave it out", range.start(), range.end()),
    );
    default
}

/// What turns off a duration that is off by default.
const OFF: &str = "off";

/// Words that people write for "no limit". Only [`OFF`] is taken, and only where a duration may be off.
const LIKE_OFF: [&str; 7] = [OFF, "none", "never", "no", "false", "infinite", "unlimited"];

/// A duration of that range. It cannot be turned off: whatever waits has a deadline.
pub(in crate::config) fn duration(
    field: &Option<At<DurationText>>,
    range: RangeInclusive<Duration>,
    default: Duration,
    problems: &mut Problems,
) -> Duration {
    field.as_ref().and_then(|written| given_duration(written, range, problems)).unwrap_or(default)
}

/// A duration of that range; none where none is given, or `off`.
pub(in crate::config) fn optional_duration(
    field: &Option<At<DurationText>>,
    range: RangeInclusive<Duration>,
    problems: &mut Problems,
) -> Option<Duration> {
    let written = field.as_ref().filter(|written| written.value.0 != OFF)?;
    if is_like_off(&written.value.0) {
        let message = format!("{} is no duration", quote(&written.value.0));
        problems.wrong(&written.span, message, "write \"off\", or leave it out, which means the same");
        return None;
    }
    given_duration(written, range, problems)
}

fn given_duration(
    At { value: DurationText(text), span }: &At<DurationText>,
    range: RangeInclusive<Duration>,
    problems: &mut Problems,
) -> Option<Duration> {
    let (min, max) = (show_duration(*range.start()), show_duration(*range.end()));
    if is_like_off(text) {
        let help = format!("write a duration of at most \"{max}\", or leave it out for the default");
        problems.wrong(span, "this duration cannot be turned off", help);
        return None;
    }
    let value = accept(parse_duration(text), span, problems)?;
    if range.contains(&value) {
        return Some(value);
    }
    let message = format!("{} is out of range", quote(text));
    problems.wrong(span, message, format!("write a duration from \"{min}\" to \"{max}\", or leave it out"));
    None
}

fn is_like_off(text: &str) -> bool {
    LIKE_OFF.iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// A duration of that range in whole seconds: the kernel counts in seconds.
pub(in crate::config) fn whole_seconds(
    field: &Option<At<DurationText>>,
    range: RangeInclusive<Duration>,
    default: Duration,
    problems: &mut Problems,
) -> Duration {
    let value = duration(field, range, default, problems);
    refuse_fraction(field, value, problems);
    value
}

/// As [`whole_seconds`]; none where none is given, or `off`.
pub(in crate::config) fn optional_whole_seconds(
    field: &Option<At<DurationText>>,
    range: RangeInclusive<Duration>,
    problems: &mut Problems,
) -> Option<Duration> {
    let value = optional_duration(field, range, problems)?;
    refuse_fraction(field, value, problems);
    Some(value)
}

fn refuse_fraction(field: &Option<At<DurationText>>, value: Duration, problems: &mut Problems) {
    if let Some(field) = field
        && value.subsec_nanos() != 0
    {
        let help = format!("write \"{}s\"", value.as_secs() + 1);
        problems.wrong(&field.span, "the kernel takes whole seconds here", help);
    }
}

/// A size of that range, in bytes, or none where none is given.
pub(in crate::config) fn size(
    field: &Option<At<SizeText>>,
    range: RangeInclusive<u64>,
    problems: &mut Problems,
) -> Option<u64> {
    let At { value, span } = field.as_ref()?;
    let bytes = match value {
        SizeText::Text(text) => accept(parse_size(text), span, problems)?,
        // Below zero is below every range.
        SizeText::Bytes(bytes) => match u64::try_from(*bytes) {
            Ok(bytes) => bytes,
            Err(_) => {
                problems.wrong(span, format!("{bytes} is no size"), "write a size such as \"64KiB\"");
                return None;
            }
        },
    };
    if range.contains(&bytes) {
        return Some(bytes);
    }
    let (min, max) = (show_size(*range.start()), show_size(*range.end()));
    let message = format!("{} is out of range", show_size(bytes));
    problems.wrong(span, message, format!("write a size from \"{min}\" to \"{max}\", or leave it out"));
    None
}

/// Units of time, the longest first, in milliseconds.
const TIME_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// `"250ms"`, `"2s"`, `"1m30s"`: numbers with units, the longest unit first.
fn parse_duration(text: &str) -> Result<Duration, Refusal> {
    let refused = |why: String| {
        Refusal::new(why, "write whole numbers with units, d h m s ms, such as \"250ms\" or \"1m30s\"")
    };
    let mut total_ms: u64 = 0;
    let mut rest = text;
    let mut shorter_units = &TIME_UNITS[..];
    while !rest.is_empty() || text.is_empty() {
        let (number, unit, after) = split_number(rest);
        rest = after;
        if number.is_empty() {
            return Err(refused(format!("{} is no duration", quote(text))));
        }
        if unit.is_empty() && after.is_empty() {
            let message = format!("the duration {} has no unit", quote(text));
            return Err(Refusal::new(message, format!("write \"{text}s\" or \"{text}ms\"")));
        }
        let Some(at) = shorter_units.iter().position(|(name, _)| *name == unit) else {
            return Err(refused(format!("{} is no duration", quote(text))));
        };
        let unit_ms = shorter_units[at].1;
        shorter_units = &shorter_units[at + 1..];
        total_ms = number
            .parse()
            .ok()
            .and_then(|number: u64| number.checked_mul(unit_ms))
            .and_then(|part_ms| total_ms.checked_add(part_ms))
            .ok_or_else(|| refused(format!("the duration {} is too long", quote(text))))?;
    }
    Ok(Duration::from_millis(total_ms))
}

/// Units of size, in bytes.
const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// `"64KiB"`, `"10 MiB"`, `"512"`: a number and at most one unit.
fn parse_size(text: &str) -> Result<u64, Refusal> {
    let (number, _, _) = split_number(text);
    let unit = text[number.len()..].trim_start();
    let known = if unit.is_empty() { Some(1) } else { unit_bytes(unit) };
    let bytes = known.zip(number.parse().ok()).map(|(unit, number): (u64, u64)| number.checked_mul(unit));
    match bytes {
        Some(Some(bytes)) => Ok(bytes),
        Some(None) => {
            Err(Refusal::new(format!("the size {} is too large", quote(text)), "write a smaller one"))
        }
        None => {
            let meant = SIZE_UNITS.iter().find(|(name, _)| !unit.is_empty() && is_like_unit(unit, name));
            let help = match meant.filter(|_| !number.is_empty()) {
                Some((name, _)) => format!("did you mean \"{number}{name}\"?"),
                None => "write a whole number with a unit, B KiB MiB GiB, such as \"64KiB\"".to_owned(),
            };
            Err(Refusal::new(format!("{} is no size", quote(text)), help))
        }
    }
}

fn unit_bytes(unit: &str) -> Option<u64> {
    SIZE_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, bytes)| *bytes)
}

/// `k`, `KB` and `kib` for `KiB`: taken for 1,000 by some and for 1,024 by others, so they are not taken at all.
fn is_like_unit(written: &str, name: &str) -> bool {
    let written = written.to_ascii_lowercase();
    let name = name.to_ascii_lowercase();
    written == name || written == name.replace("ib", "b") || written == name.replace("ib", "")
}

/// Leading digits, the letters behind them, and what follows.
fn split_number(text: &str) -> (&str, &str, &str) {
    let number_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(number_end);
    let unit_end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, after) = rest.split_at(unit_end);
    (number, unit, after)
}

/// In the largest unit that leaves no fraction.
pub(in crate::config) fn show_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if ms == 0 {
        return "0s".to_owned();
    }
    let unit = TIME_UNITS.iter().find(|(_, unit_ms)| ms.is_multiple_of(*unit_ms));
    unit.map_or_else(|| format!("{ms}ms"), |(name, unit_ms)| format!("{}{name}", ms / unit_ms))
}

/// In the largest unit that leaves no fraction.
fn show_size(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations_with_units() {
        let ms = |text: &str| parse_duration(text).map(|duration| duration.as_millis()).ok();
        assert_eq!(ms("250ms"), Some(250));
        assert_eq!(ms("2s"), Some(2_000));
        assert_eq!(ms("1m30s"), Some(90_000));
        assert_eq!(ms("1d2h3m4s5ms"), Some(93_784_005));
        assert_eq!(ms("0s"), Some(0));
    }

    #[test]
    fn refuses_what_is_no_duration() {
        for text in [
            "",
            "5",
            "s",
            "1.5s",
            "-1s",
            "1 s",
            "30s1m",
            "1s1s",
            "1M",
            "2sec",
            "1s ",
            "ß",
            "18446744073709551615d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_sizes_in_powers_of_two() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("512B"), Ok(512));
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("10 MiB"), Ok(10_485_760));
    }

    #[test]
    fn refuses_what_is_no_size_and_guesses_the_unit() {
        for text in ["", "KiB", "1.5MiB", "-1", "1 2", "64KiBs", "ß", "17000000TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        for text in ["64k", "64K", "64KB", "64kb", "64kib"] {
            let help = parse_size(text).unwrap_err().help.unwrap();
            assert_eq!(help, "did you mean \"64KiB\"?", "{text}");
        }
    }

    #[test]
    fn shows_durations_and_sizes_as_they_are_written() {
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
        assert_eq!(show_duration(Duration::from_secs(120)), "2m");
        assert_eq!(show_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(show_size(65_536), "64KiB");
        assert_eq!(show_size(1000), "1000B");
    }
}
