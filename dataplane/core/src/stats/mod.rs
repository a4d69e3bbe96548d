//! What a worker counts, in stores that the control thread reads while the worker writes.
//!
//! Every store has **one writer**: the worker that it belongs to. So adding is a relaxed load and a relaxed store, an
//! ordinary addition to the processor, not a locked one. Readers see each number whole, and all numbers within moments
//! of each other. Two writers would lose counts, nothing worse.
//!
//! To add up, the control thread makes an empty set of its own and merges each worker's into it. Each set is aligned to
//! a cache line of its own, so that workers do not slow each other down.
//!
//! It names no metric and writes no text: `metrics` in the driver does. Quantiles are left to the reader.

mod histogram;
mod sets;

use std::sync::atomic::{AtomicU64, Ordering};

pub use histogram::{BOUNDS, FINE_BOUNDS_NS, Histogram, WIDE_BOUNDS_NS};
pub use sets::{ClusterStats, EndpointStats, ListenerStats, RouteStats, StatusClass, WorkerStats};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owner may.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Adds one; only the owner may.
    pub fn increment(&self) {
        self.add(1);
    }

    /// The count so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds what `other` has counted.
    pub fn merge(&self, other: &Self) {
        self.add(other.value());
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Adds; only the owner may.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Takes away, not below zero; only the owner may.
    pub fn subtract(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).saturating_sub(count), Ordering::Relaxed);
    }

    /// Adds one; only the owner may.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Takes one away, not below zero; only the owner may.
    pub fn decrement(&self) {
        self.subtract(1);
    }

    /// Sets it; only the owner may.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds what `other` stands at.
    pub fn merge(&self, other: &Self) {
        self.add(other.value());
    }
}
