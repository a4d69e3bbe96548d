//! The master as it is, over a disk in memory: its services, its store, and the dialogues of its sessions. Only the
//! streams are missing, and what would wait for them: everything is told at once when it is [polled](Master::poll).

use std::time::Duration;

use proto::fleet::limits::OFFLINE_AFTER_HEARTBEATS;
use proto::fleet::{NodeCredential, SECRET_BYTES};
use proto::v1::agent_message::Kind as Said;
use proto::v1::master_message::Kind as Told;
use proto::v1::{AgentMessage, Goodbye, GoodbyeReason, MasterMessage, Register};

use super::platter::Platter;
use crate::config::Config;
use crate::service::call::{Actor, Call};
use crate::service::commands::command::{Command, Wish};
use crate::service::commands::task::Run;
use crate::service::configs::NewConfig;
use crate::service::dialogue::{self, Dialogue, Heard, Over};
use crate::service::join_tokens::NewJoinToken;
use crate::service::nodes::{About, Enrolment, NodeRole};
use crate::service::page::Paging;
use crate::service::publishes::{Intent, NodeProgress};
use crate::service::sessions::Ticket;
use crate::service::{Claim, Services};

/// The one node.
pub(super) const NODE: &str = "n";

pub(super) struct Master {
    /// None while it does not run.
    services: Option<Services>,
    platter: Platter,
    seats: Vec<Seat>,
    next_stream: u64,
    join_token: String,
    credential: NodeCredential,
    config: Config,
}

/// A session, and what stands in its task.
struct Seat {
    stream: u64,
    ticket: Ticket,
    dialogue: Dialogue,
    heard_at_ms: u64,
}

/// What goes out on a stream.
pub(super) enum Out {
    Message(u64, MasterMessage),
    End(u64),
}

impl Master {
    pub(super) fn start(now_ms: u64) -> Self {
        let (platter, config) = (Platter::default(), Config::default());
        let services = Services::open_in(platter.clone(), &config).unwrap();
        let token = services.join_tokens.create(&operator(now_ms), &NewJoinToken::default()).unwrap();
        let credential = NodeCredential::new(NODE.parse().unwrap(), [7; SECRET_BYTES]);
        let (services, seats, join_token) = (Some(services), Vec::new(), token.2);
        Self { services, platter, seats, next_stream: 1, join_token, credential, config }
    }

    pub(super) fn is_down(&self) -> bool {
        self.services.is_none()
    }

    /// kill -9: the store is as it was written so far.
    pub(super) fn kill(&mut self) {
        self.platter = self.platter.copy();
        self.services = None;
        self.seats.clear();
    }

    pub(super) fn restart(&mut self) {
        if self.is_down() {
            self.services = Some(Services::open_in(self.platter.clone(), &self.config).unwrap());
        }
    }

    /// As the agent's driver asks for it: with the same credential each time, and a token that is good once.
    pub(super) fn enrol(&self, now_ms: u64) {
        let wish = Enrolment {
            id: NODE.parse().unwrap(),
            join_token: self.join_token.clone(),
            verifier: *self.credential.verifier().as_bytes(),
            role: NodeRole::Edge,
            region: String::new(),
            about: About::default(),
        };
        self.services().enrol(&agent(now_ms), Ok(wish), None).unwrap();
    }

    /// Opens a session; gives its stream.
    pub(super) fn register(&mut self, register: Register, now_ms: u64) -> (u64, Vec<Out>) {
        dialogue::check(&register).unwrap();
        let services = self.services();
        let claim = Claim { credential: Some(self.credential.clone()), certificate: None };
        services.admit(&agent(now_ms), Ok(&claim), Some(NODE)).unwrap();
        services.nodes.note(NODE, NodeRole::Edge, "", &About::default(), None, now_ms).unwrap();
        let ticket = services.sessions.open(NODE, None, now_ms);
        let dialogue = Dialogue::begin(&register);
        let (instance, ids) = (register.instance_id.clone(), register.command_ids.clone());
        services.sessions.hear(NODE, &Said::Register(register), now_ms);
        let welcome = dialogue::welcome("s".to_owned(), services.sessions.heartbeat(), now_ms);
        services.publishes.note(NODE, &dialogue.config(now_ms)).unwrap();
        services.sessions.tell(|listener| listener.handle_connected(NODE, &instance, &ids, now_ms));
        services.publishes.tell(NODE).unwrap();
        let stream = self.next_stream;
        self.next_stream += 1;
        self.seats.push(Seat { stream, ticket, dialogue, heard_at_ms: now_ms });
        (stream, vec![Out::message(stream, Told::Welcome(welcome))])
    }

    /// Takes a message; what came on a stream that is over is heard by nobody.
    pub(super) fn hear(&mut self, stream: u64, message: AgentMessage, now_ms: u64) -> Vec<Out> {
        let Some(seat) = self.seats.iter_mut().find(|seat| seat.stream == stream) else { return Vec::new() };
        let services = self.services.as_ref().unwrap();
        let said = message.kind.unwrap();
        seat.heard_at_ms = now_ms;
        services.sessions.hear(NODE, &said, now_ms);
        let Heard { answer, config, said } = match seat.dialogue.handle(said, now_ms) {
            Ok(heard) => heard,
            Err(Over::Left) => {
                self.end(stream, now_ms);
                return Vec::new();
            }
            Err(Over::Rubbish(why)) => panic!("the agent says rubbish: {why}"),
        };
        if let Some(config) = config {
            services.publishes.note(NODE, &config).unwrap();
        }
        if let Some(said) = said {
            services.sessions.tell(|listener| listener.handle_message(NODE, &said, now_ms));
            if matches!(said, Said::CommandResult(_)) {
                services.drive_commands(now_ms).unwrap();
            }
        }
        answer.into_iter().map(|answer| Out::message(stream, answer)).collect()
    }

    /// What sessions have to send by now.
    pub(super) fn poll(&mut self, now_ms: u64) -> Vec<Out> {
        let Some(services) = &self.services else { return Vec::new() };
        let patience = services.sessions.heartbeat() * OFFLINE_AFTER_HEARTBEATS;
        let (mut out, mut over) = (Vec::new(), Vec::new());
        for seat in &mut self.seats {
            let stream = seat.stream;
            if seat.ticket.end.has_changed().unwrap_or(false) {
                let reason = seat.ticket.end.borrow_and_update().unwrap();
                let goodbye = Goodbye { reason: reason.into(), retry_after_ms: 0 };
                assert_ne!(reason, GoodbyeReason::TooSlow, "nothing is read slowly here");
                out.extend([Out::message(stream, Told::Goodbye(goodbye)), Out::End(stream)]);
                over.push(stream);
                continue;
            }
            if seat.ticket.wanted.has_changed().unwrap_or(false) {
                let wanted = seat.ticket.wanted.borrow_and_update().clone().unwrap();
                let offer = seat.dialogue.offer(&wanted);
                out.extend(offer.map(|offer| Out::message(stream, Told::ConfigOffer(offer))));
            }
            while let Ok(message) = seat.ticket.queue.try_recv() {
                out.push(Out::Message(stream, message));
            }
            if Duration::from_millis(now_ms - seat.heard_at_ms) > patience {
                out.push(Out::End(stream));
                over.push(stream);
            }
        }
        over.iter().for_each(|stream| self.end(*stream, now_ms));
        out
    }

    /// A stream has ended.
    pub(super) fn end(&mut self, stream: u64, now_ms: u64) {
        let Some(place) = self.seats.iter().position(|seat| seat.stream == stream) else { return };
        let seat = self.seats.remove(place);
        let services = self.services();
        if services.sessions.close(NODE, &seat.ticket, false) {
            services.sessions.tell(|listener| listener.handle_disconnected(NODE, now_ms));
            services.nodes.note_seen(NODE, now_ms).unwrap();
        }
    }

    /// Time has passed.
    pub(super) fn drive(&self, now_ms: u64) {
        if let Some(services) = &self.services {
            services.drive_commands(now_ms).unwrap();
        }
    }

    /// Publishes a text; gives the revision.
    pub(super) fn publish(&self, text: &str, now_ms: u64) -> u64 {
        let (services, call) = (self.services(), operator(now_ms));
        let new: NewConfig = serde_json::from_value(serde_json::json!({ "config_data": text })).unwrap();
        let (version, _) = services.configs.create(&call, new).unwrap();
        let published = services.publishes.publish(&call, &version, &Intent::Publish, "", false);
        published.unwrap().revision
    }

    /// Begins a command; gives the task's id.
    pub(super) fn command(&self, command: Command, timeout_ms: u64, now_ms: u64) -> String {
        let (services, call) = (self.services(), operator(now_ms));
        let wish = Wish { timeout_ms: Some(timeout_ms), ..Wish::for_node(command, NODE) };
        services.commands.begin(&call, &services.nodes, &wish).unwrap().id
    }

    /// Ends a task that has not ended yet.
    pub(super) fn cancel(&self, id: &str, now_ms: u64) {
        let cancelled = self.services().commands.cancel(&operator(now_ms), id);
        assert!(cancelled.is_ok() || self.run(id).state.is_final(), "{cancelled:?}");
    }

    /// How the node is with a task.
    pub(super) fn run(&self, id: &str) -> Run {
        let task = self.services().commands.find(id, Paging { page: 1, page_size: 1 }).unwrap();
        task.runs.items.into_iter().next().unwrap().1
    }

    /// How far the node is with what it should have.
    pub(super) fn progress(&self, now_ms: u64) -> NodeProgress {
        self.services().publishes.progress(NODE, now_ms).unwrap()
    }

    fn services(&self) -> &Services {
        self.services.as_ref().expect("the master runs")
    }
}

impl Out {
    fn message(stream: u64, kind: Told) -> Self {
        Self::Message(stream, MasterMessage { kind: Some(kind) })
    }
}

fn operator(at_ms: u64) -> Call {
    Call { actor: Actor::User("operator".to_owned()), ..Call::system(at_ms) }
}

fn agent(at_ms: u64) -> Call {
    Call { actor: Actor::Anonymous, ..Call::system(at_ms) }
}
