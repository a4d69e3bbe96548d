//! Room for a newcomer: which silent clients give their places up when the node is full.
//!
//! A connection on which nothing is under way costs its client little when it ends: it makes another one. So before a
//! newcomer is turned away, the connection that has been silent for longest ends, in this order:
//!
//! 1. one whose client has never asked for anything: it has nothing to lose, and whoever opens connections to keep
//!    others out is put out first;
//! 2. one whose client was served before, if it has been silent for a moment: a client that was just answered is
//!    probably sending its next request, and is still being served;
//! 3. one that has just come and has not asked yet.
//!
//! It knows no sockets; how a connection ends so that nothing is lost is the driver's.

/// A client has to be silent for so many ticks (1 s) before it counts as idle: longer than a round trip to anywhere, since
/// a client that has just been answered may be sending its next request.
pub const IDLE_AFTER_TICKS: u64 = 100;

/// Most connections that end at once for newcomers: they all may come back in the next moment.
pub const BATCH_MAX: usize = 32;
/// One in so many connections ends at once. Whoever looks for the longest silence looks at all of them: with many of
/// them a look has to serve several newcomers.
const BATCH_ONE_IN: usize = 64;

/// Where a silent client stands in the order of those that go: the greatest goes first. Each with the ticks of silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// It has just come, and its first request may be on its way.
    Arriving(u64),
    /// It was served before.
    Served(u64),
    /// It has asked for nothing since it came.
    Mute(u64),
}

impl Rank {
    /// Of a client that has been silent for so long; none if its connection stays.
    pub fn of(silent_ticks: u64, has_asked: bool) -> Option<Self> {
        match (has_asked, silent_ticks >= IDLE_AFTER_TICKS) {
            (true, true) => Some(Rank::Served(silent_ticks)),
            (true, false) => None,
            (false, true) => Some(Rank::Mute(silent_ticks)),
            (false, false) => Some(Rank::Arriving(silent_ticks)),
        }
    }
}

/// The first few in the order of those that go, of any number that are offered. It allocates nothing.
#[derive(Debug)]
pub struct Longest<T> {
    /// The greatest rank first.
    kept: [Option<(Rank, T)>; BATCH_MAX],
    count: usize,
    most: usize,
}

impl<T: Copy> Longest<T> {
    /// As many as end at once on a worker that has `connections`.
    pub fn of(connections: usize) -> Self {
        let most = connections.div_ceil(BATCH_ONE_IN).clamp(1, BATCH_MAX);
        Longest { kept: [None; BATCH_MAX], count: 0, most }
    }

    /// Another one that could go.
    pub fn offer(&mut self, rank: Rank, item: T) {
        if self.count == self.most {
            let last = self.kept[self.count - 1].map(|(rank, _)| rank);
            if last >= Some(rank) {
                return;
            }
            self.count -= 1;
        }
        let place =
            self.kept[..self.count].partition_point(|kept| kept.is_some_and(|(kept, _)| kept >= rank));
        self.kept.copy_within(place..self.count, place + 1);
        self.kept[place] = Some((rank, item));
        self.count += 1;
    }

    /// Those that go, the first first. One that has just come goes for nothing less than another one that needs the
    /// place: alone, and not in a batch.
    pub fn into_items(self) -> impl Iterator<Item = T> {
        let Self { kept, count, .. } = self;
        let settled = kept[..count]
            .iter()
            .take_while(|kept| !matches!(kept, Some((Rank::Arriving(_), _)) | None))
            .count();
        kept.into_iter().take(settled.max(count.min(1))).flatten().map(|(_, item)| item)
    }
}
