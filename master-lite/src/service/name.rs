//! Names that people and programs give to things: short, plain, and safe in a path, a log line and a file name.

use super::refusal::Refusal;

/// Longest name, in bytes: as long as a host name's label and one more.
pub(crate) const NAME_BYTES_MAX: usize = 64;

/// Longest free text, such as a description, in bytes.
pub(crate) const TEXT_BYTES_MAX: usize = 1024;

/// Checks a name. The first character is a letter or a digit, so that none is `..` or looks like an option.
///
/// # Errors
/// The field with the rule.
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), Refusal> {
    let bytes = name.as_bytes();
    let is_good = (1..=NAME_BYTES_MAX).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
    if is_good {
        return Ok(());
    }
    let message =
        "is to be 1 to 64 letters, digits, dots, underscores and dashes, the first a letter or a digit";
    Err(Refusal::invalid(field, "bad_name", format!("`{field}` {message}")))
}

/// Checks each name of a list.
///
/// # Errors
/// The first entry that breaks the rule, as `field[index]`, or the list that is too long.
pub(crate) fn check_names(field: &str, names: &[String], count_max: usize) -> Result<(), Refusal> {
    if names.len() > count_max {
        let message = format!("`{field}` may have at most {count_max} entries");
        return Err(Refusal::invalid(field, "too_many", message));
    }
    names.iter().enumerate().try_for_each(|(index, name)| check_name(&format!("{field}[{index}]"), name))
}

/// Checks a free text: not too long, and nothing that would break a line of a log.
///
/// # Errors
/// The field with the rule.
pub(crate) fn check_text(field: &str, text: &str) -> Result<(), Refusal> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("`{field}` may be at most {TEXT_BYTES_MAX} bytes long");
        return Err(Refusal::invalid(field, "too_long", message));
    }
    if text.chars().any(|character| character.is_control() && character != '\n') {
        return Err(Refusal::invalid(field, "bad_text", format!("`{field}` has control characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_be_a_path_is_none() {
        for bad in ["", ".", "..", "../x", "a/b", "a\\b", "-rf", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert!(check_name("id", bad).is_err(), "{bad:?}");
        }
        for good in ["a", "hk-node-1", "v1.2.0", "A_b", &"x".repeat(64)] {
            assert!(check_name("id", good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_list_names_its_bad_entry() {
        let refusal = check_names("nodes", &["a".into(), "..".into()], 10).unwrap_err();
        assert_eq!(refusal.details[0].field, "nodes[1]");
        assert!(check_names("nodes", &["a".into(), "b".into()], 1).is_err());
    }
}
