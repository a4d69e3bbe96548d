//! Lengths of time in bodies and queries: `250ms`, `30s`, `5m`, `2h`, `7d`. One number and one unit, so that the schema can
//! say exactly what is taken.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, schema::SchemaType, schema::Type};
use utoipa::{PartialSchema, ToSchema};

/// A length of time in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) ms: u64,
}

/// The rule as a regular expression.
const PATTERN: &str = "^[0-9]{1,9}(ms|s|m|h|d)$";

/// Most digits: more than nine would be years even of milliseconds.
const DIGITS_MAX: usize = 9;

/// The longest first, as they are shown.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no length of time: write a number and ms, s, m, h or d, such as 5m");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let (_, unit_ms) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        if !(1..=DIGITS_MAX).contains(&digits) {
            return Err(wrong());
        }
        let number: u64 = number.parse().map_err(|_| wrong())?;
        Ok(Span { ms: number.saturating_mul(*unit_ms) })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, unit_ms): &&(&str, u64)| self.ms > 0 && self.ms.is_multiple_of(*unit_ms);
        match UNITS.iter().find(fits) {
            Some((name, unit_ms)) => write!(f, "{}{name}", self.ms / unit_ms),
            None => f.write_str("0s"),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl PartialSchema for Span {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).pattern(Some(PATTERN)).build().into()
    }
}

impl ToSchema for Span {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_and_shown_in_the_largest_unit_that_fits() {
        for (text, ms, shown) in [
            ("0s", 0, "0s"),
            ("250ms", 250, "250ms"),
            ("90s", 90_000, "90s"),
            ("300s", 300_000, "5m"),
            ("48h", 172_800_000, "2d"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.ms, span.to_string().as_str()), (ms, shown));
        }
    }

    #[test]
    fn what_is_no_length_of_time_is_refused() {
        for bad in ["", "5", "m", "-5m", "+5m", "5 m", "1h30m", "5w", "٥m", "1234567890ms", "1.5s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
