//! What stands in paths, as the document tells it: which name, and what it may look like. Handlers take the names as
//! [`super::extract::Names`], and services check them.
#![allow(dead_code, reason = "the document is made of the fields; nobody reads them")]

use utoipa::IntoParams;

/// A node.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfNode {
    /// The node's id.
    #[param(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    id: String,
}

/// Anything else that has an id.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfId {
    /// As it was given when it was made.
    #[param(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    id: String,
}

/// A user.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfUser {
    /// The user's name.
    #[param(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    username: String,
}

/// A version of the config.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfVersion {
    /// The version's name.
    #[param(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    version: String,
}

/// A command that was given.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfTask {
    /// The task's id.
    #[param(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    task_id: String,
}
