//! From a file's bytes to its text: UTF-8, as TOML has it. Other encodings are recognised so that the message can say
//! what to do; they are not read.

use super::error::{ConfigError, ConfigErrors};

/// The text of a config. A byte order mark in front of UTF-8, which some editors write, is taken away.
///
/// # Errors
/// It is in another encoding, with its name and the command that converts it; or it has bytes that are no characters.
pub fn decode(bytes: Vec<u8>) -> Result<String, ConfigErrors> {
    if let Some(name) = wide_encoding(&bytes) {
        let message = format!("the config is in {name}, and has to be in UTF-8");
        return Err(refused(&[], message, convert(name)));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
        Err(error) => Err(not_utf8(error.utf8_error().valid_up_to(), error.as_bytes())),
    }
}

/// UTF-16 and UTF-32, by their byte order mark or by the zeros beside the first character: TOML begins with ASCII, and has
/// no NUL anywhere.
fn wide_encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        [0, 0, 0, _, ..] => Some("UTF-32BE"),
        [_, 0, 0, 0, ..] => Some("UTF-32LE"),
        [0, _, ..] => Some("UTF-16BE"),
        [_, 0, ..] => Some("UTF-16LE"),
        _ => None,
    }
}

/// Where other characters are good UTF-8, one that is not was damaged: to convert such a text would damage the rest.
fn not_utf8(valid_bytes: usize, bytes: &[u8]) -> ConfigErrors {
    let (before, rest) = bytes.split_at(valid_bytes);
    let is_mixed = bytes.utf8_chunks().any(|chunk| !chunk.valid().is_ascii());
    let message = format!("the byte 0x{:02X} is no character of UTF-8", rest.first().unwrap_or(&0));
    let help = if is_mixed {
        "the rest of the text is UTF-8: write this character anew".to_owned()
    } else {
        // These 32 are control characters in Latin-1, which no editor writes.
        let is_windows = bytes.iter().any(|byte| (0x80..0xa0).contains(byte));
        convert(if is_windows { "WINDOWS-1252" } else { "ISO-8859-1" })
    };
    refused(before, message, help)
}

fn convert(name: &str) -> String {
    format!("convert it, if it is {name}: iconv -f {name} -t UTF-8 FILE > NEW-FILE")
}

/// `before` is the text in front of the mistake.
fn refused(before: &[u8], message: String, help: String) -> ConfigErrors {
    let text = String::from_utf8_lossy(before);
    let line = text.matches('\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    ConfigErrors::new(vec![ConfigError {
        path: String::new(),
        line,
        column,
        message,
        help: Some(help),
        span: 0..0,
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# für alle\n[node]\nregion = \"hk\"\n";

    /// Line, column and message with help of a refusal.
    fn refusal(bytes: &[u8]) -> (usize, usize, String) {
        let errors = decode(bytes.to_vec()).unwrap_err();
        let error = &errors.as_slice()[0];
        (error.line, error.column, format!("{}; {}", error.message, error.help.clone().unwrap()))
    }

    fn utf16(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(to_bytes).collect()
    }

    fn utf32(text: &str, to_bytes: fn(u32) -> [u8; 4]) -> Vec<u8> {
        text.chars().flat_map(|c| to_bytes(c.into())).collect()
    }

    #[test]
    fn takes_utf8_with_and_without_a_byte_order_mark() {
        assert_eq!(decode(TEXT.into()).unwrap(), TEXT);
        assert_eq!(decode(format!("\u{feff}{TEXT}").into()).unwrap(), TEXT);
        assert_eq!(decode(Vec::new()).unwrap(), "");
    }

    #[test]
    fn names_every_wide_encoding_and_the_command_for_it() {
        let marked = format!("\u{feff}{TEXT}");
        let cases = [
            (utf16(&marked, u16::to_le_bytes), "UTF-16"),
            (utf16(&marked, u16::to_be_bytes), "UTF-16"),
            (utf16(TEXT, u16::to_le_bytes), "UTF-16LE"),
            (utf16(TEXT, u16::to_be_bytes), "UTF-16BE"),
            (utf32(&marked, u32::to_le_bytes), "UTF-32"),
            (utf32(&marked, u32::to_be_bytes), "UTF-32"),
            (utf32(TEXT, u32::to_le_bytes), "UTF-32LE"),
            (utf32(TEXT, u32::to_be_bytes), "UTF-32BE"),
        ];
        for (bytes, name) in cases {
            let (line, column, said) = refusal(&bytes);
            assert_eq!((line, column), (1, 1));
            assert!(said.contains(&format!("in {name},")), "{said}");
            assert!(said.contains(&format!("iconv -f {name} -t UTF-8 ")), "{said}");
        }
    }

    #[test]
    fn shows_the_first_byte_that_is_not_utf8_and_guesses_the_encoding() {
        let (line, column, said) = refusal(b"[node]\nregion = \"Z\xfcrich\"\n");
        assert_eq!((line, column), (2, 12));
        assert!(said.contains("0xFC") && said.contains("iconv -f ISO-8859-1 "), "{said}");
        // The dash and the quotes of Windows.
        let (_, _, said) = refusal(b"# \x93fast\x94 \x96 Z\xfcrich\n");
        assert!(said.contains("iconv -f WINDOWS-1252 "), "{said}");
    }

    #[test]
    fn converts_no_text_that_is_utf8_but_for_one_byte() {
        for text in [&b"# f\xc3\xbcr\n# \xfc\n"[..], b"# \xfc\n# f\xc3\xbcr\n"] {
            let (_, _, said) = refusal(text);
            assert!(said.contains("anew") && !said.contains("iconv"), "{said}");
        }
    }
}
