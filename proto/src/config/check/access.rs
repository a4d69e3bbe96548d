//! The rules of a Unix socket's permissions: mode, owner and group. Whether the host has such a user is not known here.

use std::ops::Range;

use super::values::{Refusal, accept};
use crate::config::file::value::At;
use crate::config::problem::Problems;
use crate::config::read::suggest::quote;
use crate::config::{Account, SocketAccess};

/// Permission bits alone: what stands above them (setuid, setgid, sticky) means nothing on a socket.
const MODE_MAX: u32 = 0o777;
/// Whoever is neither the owner nor in the group may connect.
const MODE_OTHERS_WRITE: u32 = 0o002;
/// `LOGIN_NAME_MAX` of Linux, with the NUL at the end.
const ACCOUNT_NAME_MAX: usize = 255;
/// chown(2) takes the number above it for "leave it as it is".
const ACCOUNT_ID_MAX: u32 = u32::MAX - 1;

/// The three keys as written, under whatever names.
pub(super) struct Written<'a> {
    pub(super) mode: Option<&'a At<String>>,
    pub(super) owner: Option<&'a At<String>>,
    pub(super) group: Option<&'a At<String>>,
}

impl<'a> Written<'a> {
    /// Those that are given, and where.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&'static str, &'a Range<usize>)> + use<'a> {
        let keys = [("mode", self.mode), ("owner", self.owner), ("group", self.group)];
        keys.into_iter().filter_map(|(key, field)| Some((key, &field?.span)))
    }
}

/// Checks all three.
pub(super) fn check(written: &Written<'_>, default: SocketAccess, problems: &mut Problems) -> SocketAccess {
    let mode = written.mode.and_then(|text| accept(mode(&text.value, default.mode), &text.span, problems));
    let mut account = |field: Option<&At<String>>, what| {
        field.and_then(|text| accept(account(&text.value, what), &text.span, problems))
    };
    SocketAccess {
        mode: mode.unwrap_or(default.mode),
        owner: account(written.owner, "user").or(default.owner),
        group: account(written.group, "group").or(default.group),
    }
}

/// In octal, as chmod(1) and nginx have it. What is advised is no more open than what would hold without it.
fn mode(text: &str, default: u32) -> Result<u32, Refusal> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= MODE_MAX);
    let help = if default & MODE_OTHERS_WRITE == 0 {
        "write octal digits in quotes, such as \"0600\" (the owner alone) or \"0660\" (owner and group)"
    } else {
        "write octal digits in quotes, such as \"0666\" (everybody) or \"0660\" (owner and group)"
    };
    mode.ok_or_else(|| Refusal::new(format!("{} are no permissions", quote(text)), help))
}

fn account(text: &str, what: &str) -> Result<Account, Refusal> {
    let help = format!("write the name of a {what} or its number, such as \"www-data\" or \"33\"");
    let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    if is_number {
        let id = text.parse().ok().filter(|id| *id <= ACCOUNT_ID_MAX);
        return id
            .map(Account::Id)
            .ok_or_else(|| Refusal::new(format!("{text} is no number of a {what}"), help));
    }
    let is_odd = |c: char| c.is_control() || c.is_whitespace() || c == ':' || c == '/';
    if text.is_empty() || text.len() > ACCOUNT_NAME_MAX || text.contains(is_odd) {
        return Err(Refusal::new(format!("{} is no name of a {what}", quote(text)), help));
    }
    Ok(Account::Name(text.to_owned()))
}
