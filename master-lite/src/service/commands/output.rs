//! What a command wrote, as far as it is kept: the end of each of its two outputs, for the end of a log is what one asks
//! for. It arrives in numbered pieces; one that comes twice is taken once, one that is lost is counted.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// What all nodes of one task may keep together, so that a thousand kept tasks stay below a gigabyte.
pub(crate) const TASK_OUTPUT_BYTES_MAX: usize = 1 << 20;

/// What one output of one node may keep at most: some hundred lines of a log are read, thousands are searched elsewhere.
pub(crate) const OUTPUT_BYTES_MAX: usize = 128 << 10;

/// What it may keep at least, however many nodes a task has: a few lines that say what went wrong.
pub(crate) const OUTPUT_BYTES_MIN: usize = 512;

/// Which of a command's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// What was asked for.
    Stdout,
    /// What went wrong.
    Stderr,
}

/// Both outputs of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    stdout: Tail,
    stderr: Tail,
    next_piece: u64,
    lost_pieces: u64,
}

/// Outputs as they are stored and shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutputText {
    /// The end of the standard output.
    pub(crate) stdout: String,
    /// The end of the error output.
    pub(crate) stderr: String,
    /// Bytes that were not kept, here or by the agent.
    pub(crate) left_out_bytes: u64,
    /// Pieces that did not arrive.
    pub(crate) lost_pieces: u64,
}

impl Output {
    /// Nothing yet; `nodes` is how many share the task's room.
    pub(crate) fn new(nodes: usize) -> Self {
        // Two outputs per node.
        let share = TASK_OUTPUT_BYTES_MAX / nodes.max(1) / 2;
        let tail = Tail::new(share.clamp(OUTPUT_BYTES_MIN, OUTPUT_BYTES_MAX));
        Output { stdout: tail.clone(), stderr: tail, next_piece: 0, lost_pieces: 0 }
    }

    /// Takes a piece; pieces are numbered from 0.
    pub(crate) fn add(&mut self, piece: u64, stream: Stream, data: &[u8]) {
        let Some(lost) = piece.checked_sub(self.next_piece) else { return };
        self.lost_pieces = self.lost_pieces.saturating_add(lost);
        self.next_piece = piece.saturating_add(1);
        match stream {
            Stream::Stdout => self.stdout.add(data),
            Stream::Stderr => self.stderr.add(data),
        }
    }

    /// What there is. `agent_left_out` is what the agent did not send.
    pub(crate) fn text(&self, agent_left_out: u64) -> OutputText {
        let left_out = self.stdout.left_out.saturating_add(self.stderr.left_out);
        OutputText {
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            left_out_bytes: left_out.saturating_add(agent_left_out),
            lost_pieces: self.lost_pieces,
        }
    }
}

/// The last bytes of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tail {
    bytes: VecDeque<u8>,
    bytes_max: usize,
    left_out: u64,
}

impl Tail {
    fn new(bytes_max: usize) -> Self {
        Tail { bytes: VecDeque::new(), bytes_max, left_out: 0 }
    }

    fn add(&mut self, data: &[u8]) {
        self.bytes.extend(data);
        let excess = self.bytes.len().saturating_sub(self.bytes_max);
        self.bytes.drain(..excess);
        self.left_out += excess as u64;
    }

    /// A character that was cut in two, and what is no text, is shown as U+FFFD.
    fn text(&self) -> String {
        let (front, back) = self.bytes.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_piece_that_comes_twice_is_taken_once_and_a_lost_one_is_counted() {
        let mut output = Output::new(1);
        output.add(0, Stream::Stdout, b"a");
        output.add(0, Stream::Stdout, b"a");
        output.add(3, Stream::Stdout, b"d");
        output.add(4, Stream::Stderr, b"e");
        let text = output.text(7);
        assert_eq!((text.stdout.as_str(), text.stderr.as_str()), ("ad", "e"));
        assert_eq!((text.lost_pieces, text.left_out_bytes), (2, 7));
    }

    #[test]
    fn many_nodes_share_the_room_of_a_task() {
        for (nodes, kept) in [(1, OUTPUT_BYTES_MAX), (64, 8 << 10), (100_000, OUTPUT_BYTES_MIN)] {
            let mut output = Output::new(nodes);
            output.add(0, Stream::Stdout, &vec![b'x'; 1 << 20]);
            let text = output.text(0);
            assert_eq!((text.stdout.len(), text.left_out_bytes), (kept, (1 << 20) - kept as u64));
        }
    }

    #[test]
    fn characters_cut_between_pieces_are_whole_again() {
        let mut output = Output::new(1);
        for (piece, byte) in (0..).zip("ß→".bytes()) {
            output.add(piece, Stream::Stdout, &[byte]);
        }
        assert_eq!(output.text(0).stdout, "ß→");
    }

    proptest! {
        #[test]
        fn the_end_is_kept_and_every_byte_is_accounted_for(pieces in vec(vec(b'a'..=b'z', 0..900), 0..20)) {
            let mut output = Output::new(100_000);
            for (number, piece) in (0..).zip(&pieces) {
                output.add(number, Stream::Stdout, piece);
            }
            let (all, text) = (pieces.concat(), output.text(0));
            prop_assert!(all.ends_with(text.stdout.as_bytes()));
            prop_assert_eq!(text.stdout.len() as u64 + text.left_out_bytes, all.len() as u64);
            prop_assert_eq!(text.stdout.len(), all.len().min(OUTPUT_BYTES_MIN));
        }
    }
}
