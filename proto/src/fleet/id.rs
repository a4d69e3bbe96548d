//! Ids that stand in paths, file names, labels and logs: nothing in them can mean something else there.

use std::fmt;
use std::str::FromStr;

use super::limits::{COMMAND_ID_BYTES_MAX, NODE_ID_BYTES_MAX, TOKEN_ID_BYTES_MAX};

/// The id of a node: 1 to 128 ASCII letters, digits, `.`, `_` and `-`, beginning with a letter or digit, without `..`.
///
/// So it is no path but a segment of one, no option of a program, and no hidden file. Every id is a valid `node.id` of
/// the data plane's config; the reverse does not hold.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(String);

/// The id of a command: as [`NodeId`], at most 64 characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(String);

/// The id of a join token: as [`NodeId`], at most 64 characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(String);

/// Why a text is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdError {
    /// Nothing is written.
    Empty,
    /// Longer than this many characters.
    TooLong(usize),
    /// A character that is not a letter, a digit, `.`, `_` or `-`.
    Character,
    /// It does not begin with a letter or digit.
    Beginning,
    /// Two dots in a row.
    Dots,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("an id cannot be empty"),
            Self::TooLong(max) => write!(f, "an id has at most {max} characters"),
            Self::Character => f.write_str("an id has letters, digits, `.`, `_` and `-` only"),
            Self::Beginning => f.write_str("an id begins with a letter or a digit"),
            Self::Dots => f.write_str("an id has no two dots in a row"),
        }
    }
}

impl std::error::Error for IdError {}

fn check(text: &str, bytes_max: usize) -> Result<(), IdError> {
    let first = text.bytes().next().ok_or(IdError::Empty)?;
    if text.len() > bytes_max {
        return Err(IdError::TooLong(bytes_max));
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return Err(IdError::Character);
    }
    if !first.is_ascii_alphanumeric() {
        return Err(IdError::Beginning);
    }
    if text.contains("..") { Err(IdError::Dots) } else { Ok(()) }
}

/// The kinds of id differ in their length at most, and must not be mixed up.
macro_rules! id {
    ($type:ident, $bytes_max:expr) => {
        impl $type {
            /// As written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check(text, $bytes_max)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(NodeId, NODE_ID_BYTES_MAX);
id!(CommandId, COMMAND_ID_BYTES_MAX);
id!(TokenId, TOKEN_ID_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_of_hosts_and_uuids() {
        for id in ["hk-node-1", "a", "0", "edge.hk.example.com", "A_b-c.9", &"x".repeat(NODE_ID_BYTES_MAX)] {
            assert_eq!(id.parse::<NodeId>().map(|parsed| parsed.to_string()), Ok(id.to_owned()));
        }
        assert!("0191f0e2-8a5c-7c3e-b4d7-6f2f1f0a9b11".parse::<CommandId>().is_ok());
    }

    #[test]
    fn refuses_what_could_mean_something_in_a_path() {
        let refusal = |text: &str| text.parse::<NodeId>().unwrap_err();
        assert_eq!(refusal(""), IdError::Empty);
        assert_eq!(refusal(&"x".repeat(NODE_ID_BYTES_MAX + 1)), IdError::TooLong(NODE_ID_BYTES_MAX));
        for text in ["a/b", "a\\b", "a b", "a\0", "a%2f", "ä", "a\n", "a:b", "a*"] {
            assert_eq!(refusal(text), IdError::Character, "{text:?}");
        }
        for text in [".", "..", ".a", "-a", "_a"] {
            assert_eq!(refusal(text), IdError::Beginning, "{text:?}");
        }
        assert_eq!(refusal("a..b"), IdError::Dots);
        let long = "x".repeat(COMMAND_ID_BYTES_MAX + 1);
        assert_eq!(long.parse::<CommandId>(), Err(IdError::TooLong(COMMAND_ID_BYTES_MAX)));
    }
}
