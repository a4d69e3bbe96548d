//! Reads the small text files of `/proc` and `/sys` and takes them apart. It judges nothing.

use std::path::Path;

/// The trimmed text of `root/path`; none where it cannot be read.
pub(super) fn read(root: &Path, path: &str) -> Option<String> {
    let text = std::fs::read_to_string(root.join(path)).ok()?;
    Some(text.trim().to_owned())
}

/// One number, the whole of `root/path`.
pub(super) fn read_number(root: &Path, path: &str) -> Option<u64> {
    read(root, path)?.parse().ok()
}

/// `6.18.44-amd64` is 6.18.
pub(super) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Soft and hard limit from a line of `/proc/self/limits`, such as `Max open files  1024  4096  files`;
/// `unlimited` is [`u64::MAX`].
pub(super) fn limit(limits: &str, name: &str) -> Option<(u64, u64)> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let mut values = line.split_whitespace().map(|value| match value {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((values.next()??, values.next()??))
}

/// The value behind `name:` in `/proc/self/status`.
pub(super) fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// How many processors a list such as `0-3,8` names.
pub(super) fn processors(list: &str) -> Option<usize> {
    list.split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
            Some(last.checked_sub(first)? + 1)
        })
        .sum()
}

/// `34567` as `34,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
