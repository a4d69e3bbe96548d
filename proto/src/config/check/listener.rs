//! The rules of `[[listeners]]`, and who holds which address.

use std::ops::Range;

use super::address::{bind, clash};
use super::values::{accept, word};
use super::{Names, socket};
use crate::config::file;
use crate::config::file::value::{At, Section};
use crate::config::problem::Problems;
use crate::config::{Bind, Listener, ListenerProtocol, defaults, words};

/// Most addresses of one node: each costs a socket in every worker.
const BINDS_MAX: usize = 1024;

/// Checks every listener.
pub(super) fn listeners(
    files: &[Section<file::Listener>],
    binds: &mut Binds,
    problems: &mut Problems,
) -> Vec<Listener> {
    let mut names = Names::new("listener");
    files.iter().map(|file| listener(file, &mut names, binds, problems)).collect()
}

fn listener(
    file: &Section<file::Listener>,
    names: &mut Names,
    binds: &mut Binds,
    problems: &mut Problems,
) -> Listener {
    let Section { value: file, span } = file;
    let name = names.take(&file.name, span, problems);
    let owner =
        if name.is_empty() { "another listener".to_owned() } else { format!("the listener \"{name}\"") };
    let written = file.bind.as_ref().map(At::each).unwrap_or_default();
    if written.is_empty() {
        let help = "write `bind = \"0.0.0.0:8080\"`";
        problems.missing(span, "bind", "this listener has no address", help);
    }
    let mut held = Vec::new();
    for text in &written {
        if let Some(bind) = accept(bind(text.value), &text.span, problems)
            && binds.claim(bind.clone(), &owner, &text.span, problems)
        {
            held.push(bind);
        }
    }
    let socket = socket::of_listener(&file.socket.value, &held, problems);
    Listener {
        name,
        binds: held,
        protocol: word(
            &file.protocol,
            "protocol",
            &words::LISTENER_PROTOCOLS,
            ListenerProtocol::Http,
            problems,
        ),
        half_close: word(&file.half_close, "half_close", &words::HALF_CLOSES, defaults::HALF_CLOSE, problems),
        socket,
    }
}

/// The addresses that are taken, and by whom.
#[derive(Default)]
pub(super) struct Binds(Vec<(Bind, String)>);

impl Binds {
    /// Takes an address; false if somebody else has it.
    pub(super) fn claim(
        &mut self,
        bind: Bind,
        owner: &str,
        span: &Range<usize>,
        problems: &mut Problems,
    ) -> bool {
        if let Some((held, holder)) = self.0.iter().find(|(held, _)| clash(held, &bind)) {
            let message = if *held == bind {
                format!("{bind} is already taken by {holder}")
            } else {
                format!("{bind} clashes with {held} of {holder}")
            };
            let help = match bind {
                Bind::Tcp(_) => "give each its own port",
                Bind::Unix(_) => "give each its own path",
            };
            problems.wrong(span, message, help);
            return false;
        }
        if self.0.len() == BINDS_MAX {
            problems.wrong(span, format!("there are more than {BINDS_MAX} addresses"), None);
            return false;
        }
        self.0.push((bind, owner.to_owned()));
        true
    }
}
