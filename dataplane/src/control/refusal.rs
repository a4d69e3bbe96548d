//! Why a config was not applied, in the one shape that `check`, the log and the admin API show.

use proto::config::{ConfigError, ConfigErrors};
use serde::ser::{Serialize, SerializeStruct, Serializer};

/// A config, or the wish to apply one, that was turned down. Nothing has changed.
///
/// Serialised it is the body of the API's answer: `{"errors":[…],"code":"…","retry":true}`.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Never empty.
    errors: Vec<ConfigError>,
    cause: Cause,
}

/// What kind of reason it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The text is no config that can be used, whoever tries and whenever.
    Invalid,
    /// An address cannot be bound now, or not by this process.
    Address,
    /// The access log cannot be opened now, or not by this process.
    AccessLog,
    /// The node is in no state to take a config.
    Busy,
}

impl Cause {
    /// For programs, which must not read messages.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Cause::Invalid => "config_invalid",
            Cause::Address => "address_unavailable",
            Cause::AccessLog => "access_log_unavailable",
            Cause::Busy => "busy",
        }
    }

    /// Whether the same text may be taken later: what is in the way is not in it.
    pub(crate) fn may_pass(self) -> bool {
        match self {
            Cause::Invalid => false,
            Cause::Address | Cause::AccessLog | Cause::Busy => true,
        }
    }
}

impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut body = serializer.serialize_struct("Refusal", 3)?;
        body.serialize_field("errors", &self.errors)?;
        body.serialize_field("code", self.cause.code())?;
        body.serialize_field("retry", &self.cause.may_pass())?;
        body.end()
    }
}

impl From<ConfigErrors> for Refusal {
    fn from(errors: ConfigErrors) -> Self {
        Refusal { errors: errors.as_slice().to_vec(), cause: Cause::Invalid }
    }
}

impl Refusal {
    /// A valid config whose value at `path` cannot be used on this host. `value` is looked for in the text to say where
    /// it stands; one that came from the environment is not there, and then the beginning of the text is named.
    pub(crate) fn at(
        cause: Cause,
        text: &str,
        path: String,
        value: &str,
        message: String,
        help: &str,
    ) -> Self {
        let start = text.find(&format!("\"{value}\""));
        let (line, column) = start.map_or((1, 1), |start| position(text, start));
        let span = start.map_or(0..0, |start| start..start + value.len() + 2);
        let error = ConfigError { path, line, column, message, help: Some(help.to_owned()), span };
        Refusal { errors: vec![error], cause }
    }

    /// The node cannot take any config now.
    pub(crate) fn busy(message: &str) -> Self {
        let error = ConfigError {
            path: String::new(),
            line: 1,
            column: 1,
            message: message.to_owned(),
            help: None,
            span: 0..0,
        };
        Refusal { errors: vec![error], cause: Cause::Busy }
    }

    /// What kind of reason it is.
    pub(crate) fn cause(&self) -> Cause {
        self.cause
    }

    /// For people: each error as `file:line:column: message`, the line with a caret, and what to write.
    pub(crate) fn render(&self, file_name: &str, source: &str, color: bool) -> String {
        let rendered: Vec<String> =
            self.errors.iter().map(|error| error.render(file_name, source, color)).collect();
        rendered.join("\n")
    }

    /// For the log: the errors on one line.
    pub(crate) fn summary(&self) -> String {
        let errors: Vec<String> = self.errors.iter().map(ToString::to_string).collect();
        errors.join("; ")
    }
}

fn position(text: &str, start: usize) -> (usize, usize) {
    let before = &text[..start];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> serde_json::Value {
        let message = "is in use".to_owned();
        let refusal =
            Refusal::at(Cause::Address, text, "listeners[0].bind".into(), "0.0.0.0:80", message, "another");
        serde_json::to_value(refusal).unwrap()
    }

    #[test]
    fn says_where_the_value_stands() {
        let json = at("[[listeners]]\nbind = \"0.0.0.0:80\"\n");
        let error = &json["errors"][0];
        assert_eq!((&error["line"], &error["column"]), (&2.into(), &8.into()));
        assert_eq!((&error["path"], &error["help"]), (&"listeners[0].bind".into(), &"another".into()));
    }

    #[test]
    fn says_whether_the_same_text_may_be_taken_later() {
        let later = at("");
        assert_eq!((&later["code"], &later["retry"]), (&"address_unavailable".into(), &true.into()));
        let errors = proto::config::Config::parse("", &|_| None, "node").unwrap_err();
        let never = serde_json::to_value(Refusal::from(errors)).unwrap();
        assert_eq!((&never["code"], &never["retry"]), (&"config_invalid".into(), &false.into()));
    }

    #[test]
    fn names_the_beginning_for_a_value_from_the_environment() {
        let json = at("[[listeners]]\nbind = \"${BIND}\"\n");
        assert_eq!((&json["errors"][0]["line"], &json["errors"][0]["column"]), (&1.into(), &1.into()));
    }
}
