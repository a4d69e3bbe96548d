//! The words of the config language, such as the names of the policies, and what each means.
//!
//! The one table of words serves the conversion, the messages and the schema, so they cannot differ.

use super::planned::{self, PlannedWord};
use super::{ClusterProtocol, Driver, HalfClose, ListenerProtocol, LogLevel, Policy, Role};

/// The words that one key takes.
pub(crate) struct Words<T: 'static> {
    /// Everything that this version does.
    pub(crate) all: &'static [T],
    /// The word for it.
    pub(crate) name: fn(T) -> &'static str,
    /// Words that are known to come, and are refused with a message that says so.
    pub(crate) planned: &'static [PlannedWord],
}

impl<T: Copy> Words<T> {
    /// The words that are taken.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.all.iter().map(|value| (self.name)(*value)).collect()
    }

    /// What a word means; none: it is not taken.
    pub(crate) fn value(&self, word: &str) -> Option<T> {
        self.all.iter().copied().find(|value| (self.name)(*value) == word)
    }
}

/// What a health probe is, before its details are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeKind {
    Http,
    Tcp,
}

impl ProbeKind {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

pub(crate) const ROLES: Words<Role> =
    Words { all: &[Role::Edge, Role::Core], name: Role::name, planned: &[] };

pub(crate) const DRIVERS: Words<Driver> =
    Words { all: &[Driver::Auto, Driver::IoUring, Driver::Epoll], name: Driver::name, planned: &[] };

pub(crate) const LOG_LEVELS: Words<LogLevel> = Words {
    all: &[LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace],
    name: LogLevel::name,
    planned: &[],
};

pub(crate) const LISTENER_PROTOCOLS: Words<ListenerProtocol> = Words {
    all: &[ListenerProtocol::Http],
    name: ListenerProtocol::name,
    planned: planned::LISTENER_PROTOCOLS,
};

pub(crate) const HALF_CLOSES: Words<HalfClose> = Words {
    all: &[HalfClose::Auto, HalfClose::Serve, HalfClose::Cancel],
    name: HalfClose::name,
    planned: &[],
};

pub(crate) const CLUSTER_PROTOCOLS: Words<ClusterProtocol> = Words {
    all: &[ClusterProtocol::Http1],
    name: ClusterProtocol::name,
    planned: planned::CLUSTER_PROTOCOLS,
};

pub(crate) const POLICIES: Words<Policy> =
    Words { all: &Policy::ALL, name: Policy::name, planned: planned::POLICIES };

pub(crate) const HEALTH_KINDS: Words<ProbeKind> =
    Words { all: &[ProbeKind::Http, ProbeKind::Tcp], name: ProbeKind::name, planned: planned::HEALTH_KINDS };
