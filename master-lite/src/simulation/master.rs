//! The master as it is, over a disk in memory: its services, its store, and the dialogues of its sessions. Only the
//! streams are missing, and what would wait for them: everything is told at once when it is [polled](Master::poll).

use std::sync::LazyLock;
use std::time::Duration;

use proto::fleet::NodeCredential;
use proto::fleet::limits::OFFLINE_AFTER_HEARTBEATS;
use proto::v1::agent_message::Kind as Said;
use proto::v1::master_message::Kind as Told;
use proto::v1::{AgentMessage, Goodbye, GoodbyeReason, MasterMessage, Register};

use super::platter::Platter;
use crate::api::grpc::registration;
use crate::config::Config;
use crate::service::admission::{Changed, Confirmed, NEWCOMER_WAITS_MS};
use crate::service::call::{Actor, Call, Role};
use crate::service::commands::command::{Command, Wish};
use crate::service::commands::task::Run;
use crate::service::configs::NewConfig;
use crate::service::dialogue::{self, Dialogue, Heard, Over};
use crate::service::join_tokens::NewJoinToken;
use crate::service::nodes::{About, Enrolment, NodeRole};
use crate::service::page::Paging;
use crate::service::publishes::{Intent, NodeProgress};
use crate::service::refusal::Refusal;
use crate::service::sessions::Ticket;
use crate::service::{Claim, Services};

/// A store with the one person: a password takes too long to be hashed for each run.
static WITH_OPERATOR: LazyLock<Platter> = LazyLock::new(|| {
    let platter = Platter::default();
    let services = Services::open_in(platter.clone(), &Config::default()).unwrap();
    let made = services.users.create(&Call::system(0), OPERATOR, Role::Operator, "correct horse battery");
    made.unwrap();
    drop(services);
    platter
});
const OPERATOR: &str = "operator";

/// The one node.
pub(super) const NODE: &str = "n";

pub(super) struct Master {
    /// None while it does not run.
    services: Option<Services>,
    platter: Platter,
    seats: Vec<Seat>,
    next_stream: u64,
    join_token: String,
    config: Config,
}

/// A session, and what stands in its task.
struct Seat {
    stream: u64,
    instance_id: Vec<u8>,
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
        let mut config = Config::default();
        // Several in a run; none is so old that it ends.
        config.agents.replace_credentials_after = Duration::from_secs(30);
        let platter = WITH_OPERATOR.copy();
        let services = Services::open_in(platter.clone(), &config).unwrap();
        let new = NewJoinToken { uses: Some(1_000), ..NewJoinToken::default() };
        let (_, _, join_token) = services.join_tokens.create(&operator(now_ms), &new).unwrap();
        let (services, seats) = (Some(services), Vec::new());
        Self { services, platter, seats, next_stream: 1, join_token, config }
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

    /// As an agent asks for it, with a token that has uses left.
    pub(super) fn enrol(&self, credential: &NodeCredential, now_ms: u64) -> Result<(), Refusal> {
        let wish = Enrolment {
            id: NODE.parse().unwrap(),
            join_token: self.join_token.clone(),
            verifier: *credential.verifier().as_bytes(),
            role: NodeRole::Edge,
            region: String::new(),
            about: About::default(),
        };
        self.services().enrol(&agent(now_ms), Ok(wish), None)
    }

    /// Opens a session; gives its stream.
    pub(super) fn register(
        &mut self,
        credential: &NodeCredential,
        register: Register,
        now_ms: u64,
    ) -> Result<(u64, Vec<Out>), Refusal> {
        dialogue::check(&register).unwrap();
        let services = self.services();
        let claim = Claim { credential: Some(credential.clone()), certificate: None };
        let admitted = services.register(&agent(now_ms), &claim, &registration(&register, now_ms))?;
        let ticket = services.sessions.open(NODE, None, now_ms);
        let dialogue = Dialogue::begin(&register, admitted);
        let (instance, ids) = (register.instance_id.clone(), register.command_ids.clone());
        services.sessions.hear(NODE, &Said::Register(register), now_ms);
        let welcome = dialogue::welcome("s".to_owned(), services.sessions.heartbeat(), now_ms);
        services.publishes.note(NODE, &dialogue.config(now_ms)).unwrap();
        services.sessions.tell(|listener| listener.handle_connected(NODE, &instance, &ids, now_ms));
        services.publishes.tell(NODE).unwrap();
        let stream = self.next_stream;
        self.next_stream += 1;
        self.seats.push(Seat {
            stream,
            instance_id: instance.to_vec(),
            ticket,
            dialogue,
            heard_at_ms: now_ms,
        });
        Ok((stream, vec![Out::message(stream, Told::Welcome(welcome))]))
    }

    /// Takes a message; what came on a stream that is over is heard by nobody.
    pub(super) fn hear(&mut self, stream: u64, message: AgentMessage, now_ms: u64) -> Vec<Out> {
        let Some(seat) = self.seats.iter_mut().find(|seat| seat.stream == stream) else { return Vec::new() };
        let services = self.services.as_ref().unwrap();
        let said = message.kind.unwrap();
        seat.heard_at_ms = now_ms;
        services.sessions.hear(NODE, &said, now_ms);
        let Heard { answer, config, said, is_first } = match seat.dialogue.handle(said, now_ms) {
            Ok(heard) => heard,
            Err(Over::Left) => {
                self.end(stream, now_ms);
                return Vec::new();
            }
            Err(Over::Rubbish(why)) => panic!("the agent says rubbish: {why}"),
        };
        let mut answers: Vec<Told> = answer.into_iter().collect();
        // Only a session of a node that was deleted meanwhile fails in any of this: it ends.
        if is_first {
            match services.nodes.confirm(&agent(now_ms), NODE, &seat.instance_id) {
                Ok(Confirmed::Newcomer) => seat.dialogue.delay_credential(now_ms + NEWCOMER_WAITS_MS),
                Ok(Confirmed::Copied) => seat.dialogue.hurry_credential(),
                Ok(Confirmed::Known) | Err(_) => {}
            }
        }
        if let Some(Said::CredentialChange(change)) = &said {
            match services.change_credential(NODE, change, now_ms) {
                Ok(Changed::Taken(answer)) => answers.push(answer),
                Ok(Changed::Kept(change_at_ms)) => seat.dialogue.set_credential_change(change_at_ms),
                Ok(Changed::Nothing) => panic!("the master does not know {change:?}"),
                Err(_) => {}
            }
        }
        answers.extend(seat.dialogue.poll_credential(now_ms));
        if let Some(config) = config {
            services.publishes.note(NODE, &config).unwrap();
        }
        if let Some(said) = said {
            services.sessions.tell(|listener| listener.handle_message(NODE, &said, now_ms));
            if matches!(said, Said::CommandResult(_)) {
                services.drive_commands(now_ms).unwrap();
            }
        }
        answers.into_iter().map(|answer| Out::message(stream, answer)).collect()
    }

    /// What sessions have to send by now.
    pub(super) fn poll(&mut self, now_ms: u64) -> Vec<Out> {
        let Some(services) = &self.services else { return Vec::new() };
        let patience = services.sessions.heartbeat() * OFFLINE_AFTER_HEARTBEATS;
        let (mut out, mut over) = (Vec::new(), Vec::new());
        for seat in &mut self.seats {
            let stream = seat.stream;
            // Also where the registry has dropped its end by now.
            let end = *seat.ticket.end.borrow_and_update();
            if let Some(reason) = end {
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

    /// Publishes a text to nodes in another region.
    pub(super) fn publish_elsewhere(&self, text: &str, region: &str, now_ms: u64) {
        let (services, call) = (self.services(), operator(now_ms));
        let new = serde_json::json!({ "config_data": text, "regions": [region] });
        let (version, _) = services.configs.create(&call, serde_json::from_value(new).unwrap()).unwrap();
        services.publishes.publish(&call, &version, &Intent::Publish, "", false).unwrap();
    }

    /// Whether a session is open.
    pub(super) fn has_session(&self, stream: u64) -> bool {
        self.seats.iter().any(|seat| seat.stream == stream)
    }

    /// Deletes the node.
    pub(super) fn delete(&self, now_ms: u64) {
        self.services().nodes.remove(&operator(now_ms), NODE).unwrap();
    }

    /// Lets the node's id in again.
    pub(super) fn let_in(&self, now_ms: u64) {
        self.services().former_nodes.unbar(&operator(now_ms), NODE).unwrap();
    }

    /// Whether the node is one of the fleet.
    pub(super) fn is_enrolled(&self) -> bool {
        self.services().nodes.find(NODE, 0).is_ok()
    }

    /// Whether its id is barred.
    pub(super) fn is_barred(&self) -> bool {
        self.services().former_nodes.barred(Paging { page: 1, page_size: 1 }).unwrap().total > 0
    }

    /// Whether it is known that somebody uses a copy of its credential.
    pub(super) fn knows_of_copy(&self) -> bool {
        self.services().nodes.find(NODE, 0).is_ok_and(|node| node.record.copied_at_ms > 0)
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
    Call { actor: Actor::User(OPERATOR.to_owned()), ..Call::system(at_ms) }
}

fn agent(at_ms: u64) -> Call {
    Call { actor: Actor::Anonymous, ..Call::system(at_ms) }
}
