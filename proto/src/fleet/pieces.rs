//! Reports in pieces: cut by the agent, put together by the master.

use std::fmt;

use bytes::Bytes;
use prost::Message as _;

use super::limits::{MESSAGE_BYTES_MAX, METRICS_PIECE_BYTES_MAX};
use crate::v1::{Metrics, MetricsPiece};

impl From<&Metrics> for MetricsPiece {
    /// The whole report in one, to be [cut](MetricsPiece::cut).
    fn from(report: &Metrics) -> Self {
        Self { data: Bytes::from(report.encode_to_vec()), is_last: true }
    }
}

impl MetricsPiece {
    /// Pieces of [`METRICS_PIECE_BYTES_MAX`] bytes at most, at least one, which together say the same.
    pub fn cut(mut self) -> impl Iterator<Item = Self> {
        let mut is_done = false;
        std::iter::from_fn(move || {
            if is_done {
                return None;
            }
            let length = self.data.len().min(METRICS_PIECE_BYTES_MAX);
            let data = self.data.split_to(length);
            is_done = self.data.is_empty();
            Some(Self { data, is_last: is_done && self.is_last })
        })
    }
}

/// Puts the pieces of one agent's reports together.
#[derive(Debug, Default)]
pub struct Pieces {
    held: Vec<u8>,
}

/// Why pieces make no report. Those that were held are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PiecesError {
    /// Together they are longer than [`MESSAGE_BYTES_MAX`].
    TooLong,
    /// They are no encoded report.
    Malformed(String),
}

impl Pieces {
    /// Takes the next piece; with the last one comes the report.
    ///
    /// # Errors
    /// The pieces are too long together, or make no report.
    pub fn add(&mut self, piece: &MetricsPiece) -> Result<Option<Metrics>, PiecesError> {
        if self.held.len() + piece.data.len() > MESSAGE_BYTES_MAX {
            self.held = Vec::new();
            return Err(PiecesError::TooLong);
        }
        self.held.extend_from_slice(&piece.data);
        if !piece.is_last {
            return Ok(None);
        }
        // Between two reports nothing is held.
        let whole = std::mem::take(&mut self.held);
        Metrics::decode(&whole[..]).map(Some).map_err(|error| PiecesError::Malformed(error.to_string()))
    }
}

impl fmt::Display for PiecesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "the pieces of a report have more than {MESSAGE_BYTES_MAX} bytes"),
            Self::Malformed(error) => write!(f, "the pieces are no report: {error}"),
        }
    }
}

impl std::error::Error for PiecesError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::MetricFamily;
    use proptest::prelude::*;

    fn report(help_bytes: usize) -> Metrics {
        let family =
            MetricFamily { name: "m".to_owned(), help: "x".repeat(help_bytes), ..MetricFamily::default() };
        Metrics { taken_at_unix_ms: 7, families: vec![family], ..Metrics::default() }
    }

    proptest! {
        #[test]
        fn a_report_of_any_length_arrives_as_it_was(help_bytes in 0..6 * METRICS_PIECE_BYTES_MAX) {
            let report = report(help_bytes);
            let cut: Vec<MetricsPiece> = MetricsPiece::from(&report).cut().collect();
            prop_assert_eq!(cut.len(), report.encoded_len().div_ceil(METRICS_PIECE_BYTES_MAX));
            prop_assert!(cut.iter().all(|piece| piece.data.len() <= METRICS_PIECE_BYTES_MAX));
            let mut pieces = Pieces::default();
            // Twice: what is held ends with its report.
            for _ in 0..2 {
                let mut whole: Vec<Option<Metrics>> =
                    cut.iter().map(|piece| pieces.add(piece).unwrap()).collect();
                prop_assert_eq!(whole.pop(), Some(Some(report.clone())));
                prop_assert!(whole.iter().all(Option::is_none));
            }
        }
    }

    #[test]
    fn an_empty_report_is_one_piece() {
        let pieces: Vec<MetricsPiece> = MetricsPiece::from(&Metrics::default()).cut().collect();
        assert_eq!(pieces, [MetricsPiece { data: Bytes::new(), is_last: true }]);
        assert_eq!(Pieces::default().add(&pieces[0]), Ok(Some(Metrics::default())));
    }

    #[test]
    fn what_is_too_long_or_no_report_is_dropped_and_the_next_report_is_good() {
        let mut pieces = Pieces::default();
        let half = MetricsPiece { data: vec![0; MESSAGE_BYTES_MAX / 2 + 1].into(), is_last: false };
        assert_eq!(pieces.add(&half), Ok(None));
        assert_eq!(pieces.add(&half), Err(PiecesError::TooLong));
        let rubbish = MetricsPiece { data: Bytes::from_static(b"\xff"), is_last: true };
        assert!(matches!(pieces.add(&rubbish), Err(PiecesError::Malformed(_))));
        assert_eq!(pieces.add(&MetricsPiece::from(&report(3))), Ok(Some(report(3))));
    }
}
