//! The content of large bodies: byte `i` is `i mod 251`. The origin sends it and checks uploads against it, the load
//! generator the other way round; both compare whole slices, which costs next to nothing beside the copy.

use std::sync::LazyLock;

/// A prime, so that a lost or doubled block shows.
const PERIOD: usize = 251;

/// Longest piece that [`piece`] gives out at once.
pub(crate) const PIECE_MAX: usize = 1 << 20;

/// Long enough that any piece can be cut out of it.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| (0..=250_u8).cycle().take(PIECE_MAX + PERIOD).collect());

/// The content from offset `from`: at most `chunk` and at most [`PIECE_MAX`] bytes, and not beyond `total`.
pub(crate) fn piece(from: u64, total: u64, chunk: usize) -> &'static [u8] {
    let start = (from % PERIOD as u64) as usize;
    let chunk = chunk.min(PIECE_MAX);
    let length = usize::try_from(total - from).map_or(chunk, |left| left.min(chunk));
    &PATTERN[start..start + length]
}

/// Whether `bytes` are the content from offset `from`.
pub(crate) fn matches(from: u64, bytes: &[u8]) -> bool {
    let offsets = (from..).step_by(PIECE_MAX);
    bytes.chunks(PIECE_MAX).zip(offsets).all(|(part, at)| part == piece(at, u64::MAX, part.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_piece_counts_modulo_251() {
        for (from, total, chunk) in [(0, 10, 4), (250, 1 << 20, 1 << 20), (12_345, 12_346, 100), (7, 7, 9)] {
            let piece = piece(from, total, chunk);
            assert_eq!(piece.len() as u64, (total - from).min(chunk as u64));
            assert!(piece.iter().zip(from..).all(|(byte, at)| u64::from(*byte) == at % 251));
            assert!(matches(from, piece));
        }
    }

    #[test]
    fn one_wrong_byte_and_one_wrong_offset_are_found() {
        let mut long: Vec<u8> =
            (0..2 * PIECE_MAX + 5).map(|at| ((at as u64 + 3) % PERIOD as u64) as u8).collect();
        assert!(matches(3, &long) && !matches(4, &long));
        *long.last_mut().unwrap() ^= 1;
        assert!(!matches(3, &long));
    }
}
