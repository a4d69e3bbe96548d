//! URLs where an address is wanted: what a plain one means, and which ask for something that is not there yet.

use super::values::Refusal;
use crate::config::planned::PlannedWord;
use crate::config::read::suggest::{Meant, meant, quote, quote_whole};

/// Refuses `scheme://…` where an address is wanted; none: it is no URL.
///
/// `planned` are the schemes that are not there yet, `is_address` tells what may be advised for `http://`, and
/// `example` is an address that may stand here.
pub(super) fn refuse(
    text: &str,
    planned: &'static [PlannedWord],
    is_address: impl Fn(&str) -> bool,
    example: &str,
) -> Option<Refusal> {
    let (scheme, rest) = text.split_once("://")?;
    if let Some(planned) = planned_scheme(scheme, planned) {
        let message = format!("{} asks for {}, which is planned, not there yet", quote(text), planned.what);
        return Some(Refusal::new(message, planned.help));
    }
    let message = format!("{} is a URL, not an address", quote(text));
    let general =
        format!("write an address such as \"{example}\"; what is spoken there is HTTP/1.1 in clear text");
    if !scheme.eq_ignore_ascii_case("http") {
        return Some(Refusal::new(message, general));
    }
    let authority = authority(rest);
    let meant = [authority.to_owned(), format!("{authority}:80")].into_iter().find(|meant| is_address(meant));
    let help = meant.map_or(general, |meant| format!("write {}", quote_whole(&meant)));
    Some(Refusal::new(message, help))
}

/// A misspelt scheme counts as well: `htps://` shall not be told to do without TLS.
fn planned_scheme(scheme: &str, planned: &'static [PlannedWord]) -> Option<&'static PlannedWord> {
    let words = planned.iter().flat_map(|planned| planned.words.iter().copied());
    let word = match meant(scheme, ["http"], words) {
        Meant::Planned(word) => word,
        Meant::Known(_) | Meant::Unclear => scheme,
    };
    PlannedWord::find(planned, word)
}

/// Host and port of what follows the scheme: without a user, a path or a query (RFC 3986, section 3.2).
fn authority(rest: &str) -> &str {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority)
}
