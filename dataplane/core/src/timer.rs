//! The timer wheel: many deadlines that mostly move, few that pass. One per worker.
//!
//! A hierarchical wheel (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987) of six levels with 64 slots
//! each. It is lazy: moving a deadline later, or disarming it, is one store; the wheel notices when it comes to the slot
//! where the timer is filed, and files it anew. Moving a deadline earlier takes the timer from one list to another.
//! Both are O(1), and nothing allocates but [`Wheel::register`] when there have never been so many timers.
//!
//! Time is a count of ticks from any origin; how long a tick is the driver decides (10 ms). It has no clock.

/// A deadline that never comes: the timer is registered but not armed.
const NEVER: u64 = u64::MAX;

/// No timer: the end of a list, or not in one.
const NONE: u32 = u32::MAX;

const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;

/// Six levels of 64 slots span 2^36 ticks, at 10 ms a tick over 20 years. Later deadlines are filed at the far end.
const LEVELS: usize = 6;

/// Ticks that the wheel spans, less one.
const SPAN_MASK: u64 = (1 << (SLOT_BITS * 6)) - 1;

/// A registered timer. After [`Wheel::remove`] it names nothing, also when its place was taken by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId {
    index: u32,
    generation: u32,
}

/// All timers of one worker.
#[derive(Debug)]
pub struct Wheel {
    /// The first tick that has not been looked at.
    next_tick: u64,
    levels: [Level; LEVELS],
    entries: Vec<Entry>,
    /// The first of the free entries, linked by `next`.
    free: u32,
    registered: usize,
}

/// 64 lists of timers; bit `n` of `occupied` says that list `n` is not empty.
#[derive(Clone, Copy, Debug)]
struct Level {
    occupied: u64,
    heads: [u32; SLOTS],
}

#[derive(Debug)]
struct Entry {
    /// When it expires; it may have moved later since it was filed.
    deadline: u64,
    /// The tick it is filed under, never later than the deadline; `NEVER` where it is in no list.
    filed: u64,
    next: u32,
    previous: u32,
    generation: u32,
    key: u32,
    /// Level and slot of the list that it is in.
    level: u8,
    slot: u8,
}

impl Wheel {
    /// An empty wheel at `now`.
    pub fn new(now: u64) -> Self {
        Wheel {
            next_tick: now,
            levels: [Level { occupied: 0, heads: [NONE; SLOTS] }; LEVELS],
            entries: Vec::new(),
            free: NONE,
            registered: 0,
        }
    }

    /// How many timers are registered, armed or not.
    pub fn len(&self) -> usize {
        self.registered
    }

    /// Whether no timer is registered.
    pub fn is_empty(&self) -> bool {
        self.registered == 0
    }

    /// A new timer, not armed; `key` is what [`Wheel::advance`] will say when it expires.
    ///
    /// # Panics
    /// With 2^32 - 1 timers, far above any limit of open connections.
    pub fn register(&mut self, key: u32) -> TimerId {
        self.registered += 1;
        if self.free != NONE {
            let index = self.free;
            let entry = &mut self.entries[index as usize];
            self.free = entry.next;
            entry.key = key;
            entry.next = NONE;
            return TimerId { index, generation: entry.generation };
        }
        let index = u32::try_from(self.entries.len()).ok().filter(|index| *index != NONE);
        let index = index.expect("fewer than 2^32 - 1 timers");
        self.entries.push(Entry::new(key));
        TimerId { index, generation: 0 }
    }

    /// Arms the timer, or moves its deadline. One that is past expires at the next tick. False if it was removed.
    pub fn schedule(&mut self, timer: TimerId, deadline: u64) -> bool {
        let Some(entry) = self.entry(timer) else { return false };
        // `NEVER` itself means disarmed.
        entry.deadline = deadline.min(NEVER - 1);
        let (is_filed, filed) = (entry.filed != NEVER, entry.filed);
        // Filed no later than the deadline: it will be looked at in time. A filing for a tick that has not been
        // looked at yet also serves a deadline that is already past.
        if is_filed && filed <= deadline.max(self.next_tick) {
            return true;
        }
        if is_filed {
            self.unlink(timer.index);
        }
        self.file(timer.index);
        true
    }

    /// Takes the deadline away; the timer stays registered. False if it was removed.
    pub fn disarm(&mut self, timer: TimerId) -> bool {
        self.entry(timer).map(|entry| entry.deadline = NEVER).is_some()
    }

    /// The deadline, if the timer is armed.
    pub fn deadline(&self, timer: TimerId) -> Option<u64> {
        let entry = self.entries.get(timer.index as usize)?;
        (entry.generation == timer.generation && entry.deadline != NEVER).then_some(entry.deadline)
    }

    /// Removes the timer for good. False if it was removed before.
    pub fn remove(&mut self, timer: TimerId) -> bool {
        let free = self.free;
        let Some(entry) = self.entry(timer) else { return false };
        entry.generation = entry.generation.wrapping_add(1);
        entry.deadline = NEVER;
        if entry.filed != NEVER {
            self.unlink(timer.index);
        }
        self.entries[timer.index as usize].next = free;
        self.free = timer.index;
        self.registered -= 1;
        true
    }

    /// Calls `expired` with the key of each timer whose deadline is `now` or earlier, in any order; each is disarmed
    /// first. Ticks already looked at are not looked at again.
    pub fn advance(&mut self, now: u64, mut expired: impl FnMut(u32)) {
        while let Some(due) = self.first_occupied().filter(|due| due.tick <= now) {
            // The lowest level holds single ticks: this one is now done. Higher up the slot's timers move down.
            self.next_tick = due.tick + u64::from(due.level == 0);
            let mut index = self.take_list(due.level, due.slot);
            while index != NONE {
                let following = self.entries[index as usize].next;
                self.settle(index, now, &mut expired);
                index = following;
            }
        }
        self.next_tick = self.next_tick.max(now.saturating_add(1));
    }

    /// The tick at which the wheel wants to be advanced next: never later than the next deadline, sometimes earlier
    /// (to file timers anew). None: nothing is filed, there is no reason to wake up.
    pub fn next_wake(&self) -> Option<u64> {
        self.first_occupied().map(|due| due.tick)
    }

    /// Expires the timer that was taken from its list, drops it, or files it anew.
    fn settle(&mut self, index: u32, now: u64, expired: &mut impl FnMut(u32)) {
        let entry = &mut self.entries[index as usize];
        entry.filed = NEVER;
        entry.next = NONE;
        entry.previous = NONE;
        if entry.deadline <= now {
            entry.deadline = NEVER;
            expired(entry.key);
        } else if entry.deadline != NEVER {
            self.file(index);
        }
    }

    /// The entry, unless the timer was removed.
    fn entry(&mut self, timer: TimerId) -> Option<&mut Entry> {
        self.entries.get_mut(timer.index as usize).filter(|entry| entry.generation == timer.generation)
    }

    /// Puts an entry that is in no list into the one for its deadline.
    fn file(&mut self, index: u32) {
        let deadline = self.entries[index as usize].deadline;
        // Behind the far end of the span: filed at the end, looked at there, and filed anew.
        let tick = deadline.clamp(self.next_tick, self.next_tick | SPAN_MASK);
        let (level, slot) = place(self.next_tick, tick);
        let head = std::mem::replace(&mut self.levels[level].heads[slot], index);
        self.levels[level].occupied |= 1 << slot;
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.filed = tick;
        entry.next = head;
        entry.previous = NONE;
        // Both are below 64.
        entry.level = level as u8;
        entry.slot = slot as u8;
    }

    fn unlink(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let (next, previous) = (entry.next, entry.previous);
        let (level, slot) = (usize::from(entry.level), usize::from(entry.slot));
        entry.filed = NEVER;
        entry.next = NONE;
        entry.previous = NONE;
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
            return;
        }
        self.levels[level].heads[slot] = next;
        if next == NONE {
            self.levels[level].occupied &= !(1 << slot);
        }
    }

    /// Empties a slot and returns the first of its timers.
    fn take_list(&mut self, level: usize, slot: usize) -> u32 {
        self.levels[level].occupied &= !(1 << slot);
        std::mem::replace(&mut self.levels[level].heads[slot], NONE)
    }

    /// The occupied slot that begins first; of two that begin together the one of the higher level, whose timers may
    /// belong into the other.
    fn first_occupied(&self) -> Option<Due> {
        let due = |(level, slots): (usize, &Level)| {
            // All slots of a level lie in one turn of it, see `place`, so the lowest number is the earliest.
            (slots.occupied != 0).then(|| {
                let slot = slots.occupied.trailing_zeros() as usize;
                Due { tick: slot_start(self.next_tick, level, slot), level, slot }
            })
        };
        let mut all = self.levels.iter().enumerate().filter_map(due);
        let first = all.next()?;
        Some(all.fold(first, |least, other| if other.tick <= least.tick { other } else { least }))
    }
}

impl Entry {
    fn new(key: u32) -> Self {
        let (next, previous) = (NONE, NONE);
        Entry { deadline: NEVER, filed: NEVER, next, previous, generation: 0, key, level: 0, slot: 0 }
    }
}

/// A slot and the first tick that it covers.
#[derive(Clone, Copy)]
struct Due {
    tick: u64,
    level: usize,
    slot: usize,
}

/// The level is that of the highest digit (base 64) in which `tick` differs from `now`, the slot is that digit. So
/// all timers of a level share the digits above with `now`: a level never wraps around.
fn place(now: u64, tick: u64) -> (usize, usize) {
    let highest_bit = 63 - ((now ^ tick) | 1).leading_zeros();
    let level = (highest_bit / SLOT_BITS) as usize;
    let slot = (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS;
    (level, slot)
}

/// The first tick that `slot` covers, in the turn of its level that `now` is in.
fn slot_start(now: u64, level: usize, slot: usize) -> u64 {
    let shift = SLOT_BITS * level as u32;
    let turn = now >> (shift + SLOT_BITS) << (shift + SLOT_BITS);
    turn | (slot as u64) << shift
}
