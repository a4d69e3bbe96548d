//! Alerts.
pub(crate) mod board;
pub(crate) mod machine;
pub(crate) mod reading;
pub(crate) mod rule;
