//! What one side takes from the other, at most. Each side holds them for itself: a peer is not trusted for its length.

use std::time::Duration;

use crate::config::TEXT_BYTES_MAX;

/// Longest message of either side: the longest config, and room for what stands beside it.
pub const MESSAGE_BYTES_MAX: usize = TEXT_BYTES_MAX + 64 * 1024;

/// Longest piece of a report, with what stands around it 4 KiB: the buffer that it is received into grows to twice as much.
pub const METRICS_PIECE_BYTES_MAX: usize = 4 * 1024 - 64;

/// Longest node id: it is a label of metrics and a segment of paths, as the config's names are.
pub const NODE_ID_BYTES_MAX: usize = 128;
/// Longest command id: a UUID has 36.
pub const COMMAND_ID_BYTES_MAX: usize = 64;
/// Longest id of a join token: as for commands.
pub const TOKEN_ID_BYTES_MAX: usize = 64;
/// Longest region and host name: a line of a table. The config's `region` has the same limit.
pub const LABEL_BYTES_MAX: usize = 128;
/// Longest version name of a config: it is a segment of paths, too.
pub const VERSION_BYTES_MAX: usize = 128;
/// Longest sentence for people; longer ones are cut.
pub const MESSAGE_TEXT_BYTES_MAX: usize = 4 * 1024;
/// Capabilities that a peer may list; today there are three.
pub const CAPABILITIES_MAX: usize = 32;
/// Problems that one heartbeat may tell of: nobody reads more.
pub const PROBLEMS_MAX: usize = 16;
/// Mistakes of a config that one nack may tell of; the config model's own bound.
pub const CONFIG_PROBLEMS_MAX: usize = 50;

/// Series in one report: about a hundred routes with their histograms. More are left out, and counted.
pub const SERIES_MAX: usize = 2_000;
/// Buckets of one histogram: the data plane's widest has fewer than forty.
pub const BUCKETS_MAX: usize = 128;
/// Labels of one series.
pub const LABELS_MAX: usize = 16;

/// Three heartbeats that are missed make a node offline: see [`OFFLINE_AFTER_HEARTBEATS`].
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// A master cannot ask for more work than this.
pub const HEARTBEAT_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Beyond this a dead agent would not be noticed within minutes.
pub const HEARTBEAT_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// One may be lost with a session, a second while the agent backs off.
pub const OFFLINE_AFTER_HEARTBEATS: u32 = 3;
/// How long an agent may take from the stream's opening to its `Register`, and a master to its `Welcome`.
pub const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// HTTP/2 PING after this much silence, on both sides.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A PING that is not answered within this ends the connection.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Commands that run at once on one node: they share one data plane, and most take milliseconds.
pub const COMMANDS_RUNNING_MAX: usize = 8;
/// Results that an agent remembers, so that a command that is sent again is not run again.
pub const COMMAND_RESULTS_KEPT_MAX: usize = 128;
/// What a command has if the master does not say.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// Shortest deadline: below it even a status cannot be read on a busy host.
pub const COMMAND_DEADLINE_MIN: Duration = Duration::from_millis(100);
/// A restart waits for the drain, which systemd ends after 90 s; with room for longer drains.
pub const COMMAND_DEADLINE_MAX: Duration = Duration::from_secs(600);
/// Output of one command that is sent: some thousand lines of a log.
pub const COMMAND_OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// One piece of it.
pub const COMMAND_OUTPUT_CHUNK_BYTES_MAX: usize = 16 * 1024;
/// Log lines if the master does not say.
pub const LOG_LINES: u32 = 200;
/// Log lines at most: more would not pass [`COMMAND_OUTPUT_BYTES_MAX`].
pub const LOG_LINES_MAX: u32 = 5_000;

/// The interval that a peer asked for, pulled into the limits; 0 stands for `otherwise`.
pub fn interval(asked_ms: u64, otherwise: Duration) -> Duration {
    if asked_ms == 0 {
        return otherwise;
    }
    Duration::from_millis(asked_ms).clamp(HEARTBEAT_INTERVAL_MIN, HEARTBEAT_INTERVAL_MAX)
}

/// The deadline that a master asked for, pulled into the limits; 0 stands for [`COMMAND_DEADLINE`].
pub fn command_deadline(asked_ms: u64) -> Duration {
    if asked_ms == 0 {
        return COMMAND_DEADLINE;
    }
    Duration::from_millis(asked_ms).clamp(COMMAND_DEADLINE_MIN, COMMAND_DEADLINE_MAX)
}

/// The longest beginning of `text` that has at most `bytes_max` bytes and ends between two characters.
pub fn clipped(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_what_is_asked_for_into_the_limits() {
        assert_eq!(interval(0, HEARTBEAT_INTERVAL), HEARTBEAT_INTERVAL);
        assert_eq!(interval(1, HEARTBEAT_INTERVAL), HEARTBEAT_INTERVAL_MIN);
        assert_eq!(interval(u64::MAX, HEARTBEAT_INTERVAL), HEARTBEAT_INTERVAL_MAX);
        assert_eq!(interval(5_000, HEARTBEAT_INTERVAL), Duration::from_secs(5));
        assert_eq!(command_deadline(0), COMMAND_DEADLINE);
        assert_eq!(command_deadline(1), COMMAND_DEADLINE_MIN);
        assert_eq!(command_deadline(u64::MAX), COMMAND_DEADLINE_MAX);
    }

    #[test]
    fn a_dead_peer_is_noticed_as_soon_as_was_promised() {
        let seconds = [KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, HEARTBEAT_INTERVAL].map(|time| time.as_secs());
        assert_eq!((seconds, OFFLINE_AFTER_HEARTBEATS), ([10, 3, 10], 3));
    }

    #[test]
    fn cuts_between_characters() {
        assert_eq!(clipped("aß", 3), "aß");
        assert_eq!(clipped("aß", 2), "a");
        assert_eq!(clipped("", 0), "");
    }
}
