//! The plan of a reload: what a new config changes. For the log and the API, and for the sockets to bind and close.
//!
//! It is a comparison, nothing is done here. Names whose addresses may have changed in DNS are not its matter: those
//! show in the snapshots.

use std::collections::{HashMap, HashSet};

use proto::config::{Bind, Config, Listener};

/// What changes from one config to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Listening sockets.
    pub listeners: ListenerChanges,
    /// Routes, by name.
    pub routes: Changes,
    /// Clusters, by name.
    pub clusters: Changes,
    /// Whether the order of routes that stay is another, which decides between equally specific ones.
    pub are_routes_reordered: bool,
    /// Sections of the node itself that are not as they were.
    pub sections: Vec<Section>,
}

/// Listening sockets, each by its address: a listener that is only renamed keeps its sockets and what waits in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerChanges {
    /// Nothing about its listener has changed.
    pub kept: Vec<BindAt>,
    /// The socket stays, but its listener's name, protocol or options are others.
    pub changed: Vec<BindAt>,
    /// To be bound.
    pub opened: Vec<BindAt>,
    /// To be closed; the listener is the old one.
    pub closed: Vec<BindAt>,
}

/// An address and the name of its listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BindAt {
    /// The listener's name.
    pub listener: String,
    /// The address.
    pub bind: Bind,
}

/// Names of objects, in the order of their config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Equal in both.
    pub kept: Vec<String>,
    /// In both, not equal.
    pub changed: Vec<String>,
    /// Only in the new config.
    pub added: Vec<String>,
    /// Only in the old config.
    pub removed: Vec<String>,
}

/// A section of the node itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Section {
    /// `[node]`
    Node,
    /// `[runtime]`: takes effect at the next start.
    Runtime,
    /// `[admin]`
    Admin,
    /// `[log]`
    Log,
    /// `[limits]`
    Limits,
}

impl Changes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.added.is_empty() && self.removed.is_empty()
    }
}

impl Plan {
    /// Whether the new config is the old one.
    pub fn is_empty(&self) -> bool {
        let ListenerChanges { kept: _, changed, opened, closed } = &self.listeners;
        let same_sockets = changed.is_empty() && opened.is_empty() && closed.is_empty();
        same_sockets
            && self.routes.is_empty()
            && self.clusters.is_empty()
            && !self.are_routes_reordered
            && self.sections.is_empty()
    }
}

/// What `new` changes; without an `old` one all is new.
pub fn diff(old: Option<&Config>, new: &Config) -> Plan {
    let old_listeners = old.map(|old| old.listeners.as_slice()).unwrap_or_default();
    let old_routes = old.map(|old| old.routes.as_slice()).unwrap_or_default();
    let old_clusters = old.map(|old| old.clusters.as_slice()).unwrap_or_default();
    Plan {
        listeners: listener_changes(old_listeners, &new.listeners),
        routes: changes(old_routes, &new.routes, |route| &route.name),
        clusters: changes(old_clusters, &new.clusters, |cluster| &cluster.name),
        are_routes_reordered: is_reordered(old_routes, &new.routes, |route| &route.name),
        sections: old.map(|old| changed_sections(old, new)).unwrap_or_default(),
    }
}

fn changes<T: PartialEq>(old: &[T], new: &[T], name: impl Fn(&T) -> &String) -> Changes {
    let before: HashMap<&String, &T> = old.iter().map(|object| (name(object), object)).collect();
    let after: HashSet<&String> = new.iter().map(&name).collect();
    let mut changes = Changes::default();
    for object in new {
        let list = match before.get(name(object)) {
            None => &mut changes.added,
            Some(old) if *old == object => &mut changes.kept,
            Some(_) => &mut changes.changed,
        };
        list.push(name(object).clone());
    }
    changes.removed = old.iter().map(&name).filter(|name| !after.contains(name)).cloned().collect();
    changes
}

/// Whether those that are in both stand in another order.
fn is_reordered<T>(old: &[T], new: &[T], name: impl Fn(&T) -> &String) -> bool {
    let before: HashSet<&String> = old.iter().map(&name).collect();
    let after: HashSet<&String> = new.iter().map(&name).collect();
    let old_order = old.iter().map(&name).filter(|name| after.contains(name));
    let new_order = new.iter().map(&name).filter(|name| before.contains(name));
    !old_order.eq(new_order)
}

/// What makes two sockets the same: the address, and for port 0, where that says nothing, the listener's name.
type SocketKey<'a> = (&'a Bind, Option<&'a String>);

fn sockets(listeners: &[Listener]) -> impl Iterator<Item = (SocketKey<'_>, &Listener)> {
    listeners
        .iter()
        .flat_map(|listener| listener.binds.iter().map(move |bind| (socket_key(listener, bind), listener)))
}

fn socket_key<'a>(listener: &'a Listener, bind: &'a Bind) -> SocketKey<'a> {
    match bind {
        Bind::Tcp(address) if address.port() == 0 => (bind, Some(&listener.name)),
        Bind::Tcp(_) | Bind::Unix(_) => (bind, None),
    }
}

fn listener_changes(old: &[Listener], new: &[Listener]) -> ListenerChanges {
    let before: HashMap<SocketKey<'_>, &Listener> = sockets(old).collect();
    let after: HashSet<SocketKey<'_>> = sockets(new).map(|(key, _)| key).collect();
    let at =
        |listener: &Listener, bind: &Bind| BindAt { listener: listener.name.clone(), bind: bind.clone() };
    let mut changes = ListenerChanges::default();
    for (key, listener) in sockets(new) {
        let list = match before.get(&key) {
            None => &mut changes.opened,
            Some(old) if is_same_but_for_binds(old, listener) => &mut changes.kept,
            Some(_) => &mut changes.changed,
        };
        list.push(at(listener, key.0));
    }
    let gone = sockets(old).filter(|(key, _)| !after.contains(key));
    changes.closed = gone.map(|(key, listener)| at(listener, key.0)).collect();
    changes
}

/// A socket is as it was also if its listener got another address beside it.
fn is_same_but_for_binds(old: &Listener, new: &Listener) -> bool {
    let Listener { name, binds: _, protocol, half_close, socket } = old;
    *name == new.name && *protocol == new.protocol && *half_close == new.half_close && *socket == new.socket
}

fn changed_sections(old: &Config, new: &Config) -> Vec<Section> {
    let Config { node, runtime, admin, log, limits, listeners: _, routes: _, clusters: _ } = old;
    let sections = [
        (Section::Node, *node != new.node),
        (Section::Runtime, *runtime != new.runtime),
        (Section::Admin, *admin != new.admin),
        (Section::Log, *log != new.log),
        (Section::Limits, *limits != new.limits),
    ];
    sections.into_iter().filter(|(_, is_changed)| *is_changed).map(|(section, _)| section).collect()
}
