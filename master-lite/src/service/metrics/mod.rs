//! Metrics.
pub(crate) mod exposition;
pub(crate) mod histogram;
pub(crate) mod history;
pub(crate) mod point;
pub(crate) mod report;
