//! One page of a list, and how much there is of it in all.

use super::refusal::{Kind, Refusal};

/// Which part of a list is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paging {
    /// Counted from 1.
    pub(crate) page: u64,
    /// Entries on a page.
    pub(crate) page_size: u64,
}

/// Entries on a page unless told otherwise.
pub(crate) const PAGE_SIZE: u64 = 50;
/// More make an answer of megabytes.
pub(crate) const PAGE_SIZE_MAX: u64 = 200;
/// Far beyond the longest list.
pub(crate) const PAGE_MAX: u64 = 1_000_000;

impl Paging {
    /// What a query asks for.
    ///
    /// # Errors
    /// A number out of its range.
    pub(crate) fn of(page: Option<u64>, page_size: Option<u64>) -> Result<Self, Refusal> {
        let page = within("page", page.unwrap_or(1), PAGE_MAX)?;
        let page_size = within("page_size", page_size.unwrap_or(PAGE_SIZE), PAGE_SIZE_MAX)?;
        Ok(Self { page, page_size })
    }

    /// Entries before the page.
    pub(crate) fn skipped(self) -> u64 {
        (self.page - 1) * self.page_size
    }

    /// The page of a list that is there as a whole.
    pub(crate) fn cut<T>(self, all: Vec<T>) -> Page<T> {
        let total = all.len() as u64;
        let skipped = usize::try_from(self.skipped()).unwrap_or(usize::MAX);
        let size = usize::try_from(self.page_size).unwrap_or(usize::MAX);
        Page { items: all.into_iter().skip(skipped).take(size).collect(), total, paging: self }
    }
}

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Page<T> {
    /// The entries on it.
    pub(crate) items: Vec<T>,
    /// How many there are on all pages.
    pub(crate) total: u64,
    /// Which one it is.
    pub(crate) paging: Paging,
}

impl<T> Page<T> {
    /// The same page with other entries.
    pub(crate) fn map<U>(self, render: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(render).collect(), total: self.total, paging: self.paging }
    }
}

fn within(field: &str, value: u64, max: u64) -> Result<u64, Refusal> {
    if (1..=max).contains(&value) {
        return Ok(value);
    }
    let message = format!("`{field}` is to be between 1 and {max}");
    Err(Refusal::of(Kind::Malformed, field, "out_of_range", message))
}
