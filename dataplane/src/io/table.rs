//! A table that grows page by page: what is in it stays where it is, and at most one page is empty room.
//!
//! A vector that doubles would keep up to half of itself empty, and copy a hundred thousand entries while streams wait.
//! Pages are kept for the next burst, as buffers are.

use std::ops::{Index, IndexMut};

/// Entries of one page, a power of two: a few kilobytes of the small things that are kept here.
pub(crate) const PAGE: usize = 512;

/// No entry: the end of the list of vacant ones.
const NONE: u32 = u32::MAX;

/// Entries by number. A number is used again once its entry was removed.
#[derive(Debug)]
pub(crate) struct Table<T> {
    pages: Vec<Box<[Entry<T>]>>,
    /// The first vacant entry.
    vacant: u32,
    taken: usize,
}

#[derive(Debug)]
enum Entry<T> {
    /// With the next vacant one.
    Vacant(u32),
    Taken(T),
}

impl<T> Table<T> {
    /// What one entry takes.
    #[cfg(test)]
    pub(crate) const ENTRY_BYTES: usize = size_of::<Entry<T>>();

    /// An empty table.
    pub(crate) const fn new() -> Self {
        Self { pages: Vec::new(), vacant: NONE, taken: 0 }
    }

    /// How many entries are taken.
    pub(crate) fn len(&self) -> usize {
        self.taken
    }

    /// The number that the next entry will have.
    pub(crate) fn next(&mut self) -> u32 {
        if self.vacant == NONE {
            self.add_page();
        }
        self.vacant
    }

    /// Puts `value` in, and gives its number.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        let number = self.next();
        if let Some(entry) = self.entry_mut(number)
            && let Entry::Vacant(next) = std::mem::replace(entry, Entry::Taken(value))
        {
            self.vacant = next;
        }
        self.taken += 1;
        number
    }

    /// Takes an entry out; none if it is vacant.
    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let vacant = self.vacant;
        let entry = self.entry_mut(number).filter(|entry| matches!(entry, Entry::Taken(_)))?;
        let Entry::Taken(value) = std::mem::replace(entry, Entry::Vacant(vacant)) else { return None };
        self.vacant = number;
        self.taken -= 1;
        Some(value)
    }

    /// The entry, if it is taken.
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        match self.pages.get(number as usize / PAGE)?.get(number as usize % PAGE)? {
            Entry::Taken(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    /// The entry, if it is taken.
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.entry_mut(number)? {
            Entry::Taken(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    /// All taken entries of one page: those with the numbers `page * PAGE` and up.
    pub(crate) fn page_mut(&mut self, page: usize) -> impl Iterator<Item = &mut T> {
        self.pages.get_mut(page).into_iter().flatten().filter_map(|entry| match entry {
            Entry::Taken(value) => Some(value),
            Entry::Vacant(_) => None,
        })
    }

    /// All taken entries.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        (self.pages.iter_mut().flatten()).filter_map(|entry| match entry {
            Entry::Taken(value) => Some(value),
            Entry::Vacant(_) => None,
        })
    }

    /// The number behind the last that was ever given.
    pub(crate) fn end(&self) -> u32 {
        (self.pages.len() * PAGE) as u32
    }

    fn entry_mut(&mut self, number: u32) -> Option<&mut Entry<T>> {
        self.pages.get_mut(number as usize / PAGE)?.get_mut(number as usize % PAGE)
    }

    fn add_page(&mut self) {
        let first = (self.pages.len() * PAGE) as u32;
        let last = first + PAGE as u32 - 1;
        let next = |number| if number == last { NONE } else { number + 1 };
        self.pages.push((first..=last).map(|number| Entry::Vacant(next(number))).collect());
        self.vacant = first;
    }
}

/// # Panics
/// The entry is vacant: a bug of the caller.
impl<T> Index<u32> for Table<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        self.get(number).expect("the entry is taken")
    }
}

/// # Panics
/// The entry is vacant: a bug of the caller.
impl<T> IndexMut<u32> for Table<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        self.get_mut(number).expect("the entry is taken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_once_until_they_are_free_again() {
        let mut table = Table::new();
        let numbers: Vec<u32> = (0..2 * PAGE + 1).map(|value| table.insert(value)).collect();
        assert!(numbers.iter().enumerate().all(|(value, number)| table[*number] == value));
        assert_eq!(table.pages.len(), 3);
        for number in &numbers[PAGE..] {
            assert!(table.remove(*number).is_some() && table.remove(*number).is_none());
            assert!(table.get(*number).is_none());
        }
        assert_eq!((table.len(), table.page_mut(0).count(), table.page_mut(1).count()), (PAGE, PAGE, 0));
        let again: std::collections::HashSet<u32> = (0..=PAGE).map(|value| table.insert(value)).collect();
        assert_eq!(again, numbers[PAGE..].iter().copied().collect());
        assert_eq!(table.pages.len(), 3, "what was removed made room");
    }

    #[test]
    fn an_entry_stays_where_it_is_while_the_table_grows() {
        let mut table = Table::new();
        let first = table.insert(7u64);
        let place = std::ptr::from_ref(&table[first]);
        for value in 0..10 * PAGE as u64 {
            table.insert(value);
        }
        assert_eq!(std::ptr::from_ref(&table[first]), place);
        assert_eq!((table.end() as usize, table.iter_mut().count()), (11 * PAGE, 10 * PAGE + 1));
    }

    #[test]
    fn what_is_nowhere_is_not_found() {
        let mut table = Table::<u8>::new();
        assert!(table.get(0).is_none() && table.get_mut(NONE).is_none() && table.remove(5).is_none());
        assert_eq!((table.end(), table.page_mut(3).count()), (0, 0));
    }
}
