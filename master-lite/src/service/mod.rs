//! The rules: what may be done, by whom and when. Services know records and each other, and nothing of HTTP or gRPC.
//!
//! All of them are plain functions that may wait for the disk: callers on an async runtime run them where blocking is
//! allowed. Time and the caller come as a [`Call`]. To add one: a file here with its record's table (listed in
//! [`TABLES`]), a field of [`Services`], and a resource in `api/rest`.

pub(crate) mod admission;
pub(crate) mod alerts;
pub(crate) mod api_keys;
pub(crate) mod audit;
pub(crate) mod auth;
pub(crate) mod call;
pub(crate) mod client_certificates;
pub(crate) mod commands;
mod config_text;
pub(crate) mod configs;
pub(crate) mod convergence;
pub(crate) mod dialogue;
mod enrolments;
pub(crate) mod fleet_metrics;
pub(crate) mod former_nodes;
mod instances;
pub(crate) mod join_tokens;
mod logins;
pub(crate) mod metrics;
mod migration;
pub(crate) mod name;
pub(crate) mod node_credentials;
pub(crate) mod node_state;
pub(crate) mod nodes;
pub(crate) mod notify;
pub(crate) mod offer;
mod owner;
pub(crate) mod page;
mod password;
pub(crate) mod publishes;
pub(crate) mod refusal;
mod scrape;
mod secret;
pub(crate) mod sessions;
mod throttle;
pub(crate) mod token;
pub(crate) mod users;
mod watch;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::config::Config;
use crate::keys;
use crate::store::{self, Store, StoreError};

use alerts::Alerts;
use api_keys::{API_KEYS, Access, ApiKeys, KEY_PREFIX};
use audit::Audit;
use auth::{Auth, Identity};
use call::Call;
use client_certificates::{ClientCertificate, Gate, REVOKED};
use commands::Commands;
use configs::Configs;
use enrolments::Enrolments;
use former_nodes::{FORMER_NODES, FormerNodes};
use join_tokens::{JOIN_TOKENS, JoinTokens};
use metrics::Metrics;
use migration::MIGRATIONS;
use node_credentials::Lifetimes;
use nodes::{Enrolment, NODES, Nodes};
use notify::{AddressGuard, Notify};
use proto::fleet::NodeCredential;
use publishes::Publishes;
use refusal::{Kind, Refusal};
use sessions::Sessions;
use token::Tokens;
use users::{USERS, Users};
use watch::Ear;

/// Everything the master can do.
pub(crate) struct Services {
    /// What is wrong in the fleet.
    pub(crate) alerts: Alerts,
    /// What programs log in with.
    pub(crate) api_keys: ApiKeys,
    /// Who changed what.
    pub(crate) audit: Audit,
    /// Who somebody is.
    pub(crate) auth: Auth,
    /// What nodes were told to do.
    pub(crate) commands: Arc<Commands>,
    /// Configs in versions.
    pub(crate) configs: Configs,
    /// What new nodes get in with.
    pub(crate) join_tokens: JoinTokens,
    /// Nodes that were deleted.
    pub(crate) former_nodes: FormerNodes,
    /// What nodes report of themselves.
    pub(crate) metrics: Arc<Metrics>,
    /// The nodes.
    pub(crate) nodes: Arc<Nodes>,
    /// Who is told of alerts.
    pub(crate) notify: Notify,
    /// Which config is where.
    pub(crate) publishes: Publishes,
    /// The agents that are connected.
    pub(crate) sessions: Arc<Sessions>,
    /// People.
    pub(crate) users: Users,
    enrolments: Enrolments,
    gate: Gate,
    /// Our own certificates: which listener's, and until when it is good, in milliseconds since 1970.
    own_certificates: Vec<(&'static str, u64)>,
    store: Store,
}

/// What an agent opens a session with.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// As it has enrolled it.
    pub(crate) credential: Option<NodeCredential>,
    /// As its connection has shown it.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
}

/// What is to be found in the data folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// A store, or nothing of a master at all: a first start.
    Usual,
    /// No store, but perhaps what is left of an earlier master, whose store is given up.
    Anew,
}

impl Beginning {
    fn check(self, dir: &Path) -> Result<(), StoreError> {
        match (self, store::is_in(dir)) {
            (Self::Usual, true) => Ok(()),
            (Self::Usual, false) => match left_behind(dir) {
                Some(evidence) => Err(StoreError::Missing { dir: dir.display().to_string(), evidence }),
                None => Ok(()),
            },
            (Self::Anew, true) => Err(StoreError::Foreign(format!(
                "{} has a store: move it away before a new one is begun (--begin-anew)",
                dir.display()
            ))),
            (Self::Anew, false) => Ok(()),
        }
    }
}

/// A file that only a master that ran here has made: its key, or a store that was kept aside.
fn left_behind(dir: &Path) -> Option<String> {
    let names = std::fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_left =
        |name: &String| name == TOKEN_KEY_FILE || (name.ends_with(".redb") && name != store::FILE_NAME);
    names.into_iter().filter(is_left).min()
}

/// What was made at the first start.
pub(crate) struct FirstStart {
    /// Of the user `admin`.
    pub(crate) password: String,
}

/// Every service's tables.
const TABLES: &[&[&str]] = &[
    &[API_KEYS.name(), JOIN_TOKENS.name(), NODES.name(), REVOKED.name(), USERS.name()],
    &[FORMER_NODES.name(), MIGRATIONS.name()],
    &alerts::TABLES,
    &commands::TABLES,
    &configs::TABLES,
    &notify::TABLES,
    &publishes::TABLES,
];

/// The file of the key that signs login tokens.
const TOKEN_KEY_FILE: &str = "jwt.key";

impl Services {
    /// The services over a data folder's store.
    ///
    /// # Errors
    /// The folder, the store or a key cannot be used, or the folder is not as `beginning` has it.
    pub(crate) fn open(config: &Config, beginning: Beginning) -> Result<Self, StoreError> {
        let dir = config.data_dir.as_path();
        let failed =
            |what: &str, error| StoreError::File { what: format!("{what} {}", dir.display()), error };
        keys::make_dir(dir).map_err(|error| failed("cannot make the data folder", error))?;
        beginning.check(dir)?;
        // The store first: a key without a store is what is left of a master, and no first start.
        let store = Store::open(dir, &TABLES.concat())?;
        let key = keys::load_or_make(dir, TOKEN_KEY_FILE);
        let tokens = Tokens::new(&key.map_err(|error| failed("no key in the data folder", error))?);
        Self::over(store, tokens, config)
    }

    /// The services over a store that is no file.
    ///
    /// # Errors
    /// It cannot be used.
    #[cfg(test)]
    pub(crate) fn open_in(
        backend: impl redb::StorageBackend + Clone,
        config: &Config,
    ) -> Result<Self, StoreError> {
        let tokens = Tokens::new(&[0; keys::KEY_BYTES]);
        Self::over(Store::open_in(backend, &TABLES.concat())?, tokens, config)
    }

    fn over(store: Store, tokens: Tokens, config: &Config) -> Result<Self, StoreError> {
        let (limits, grpc_tls) = (&config.limits, config.grpc.tls.as_ref());
        let sessions = Arc::new(Sessions::new(config.agents.heartbeat));
        let lifetimes = Lifetimes {
            replace_after: config.agents.replace_credentials_after,
            expire_after: config.agents.credentials_expire_after,
        };
        let nodes = Arc::new(Nodes::new(store.clone(), Arc::clone(&sessions), limits.nodes, lifetimes));
        let commands = Arc::new(Commands::open(store.clone(), Arc::clone(&sessions))?);
        let metrics = Arc::new(Metrics::default());
        sessions.listen(Arc::new(Ear::new(Arc::clone(&metrics), Arc::clone(&commands))));
        let guard = AddressGuard::new(config.webhooks.allow.clone());
        Ok(Self {
            alerts: Alerts::open(store.clone())?,
            commands,
            metrics,
            notify: Notify::new(store.clone(), guard),
            api_keys: ApiKeys::new(store.clone(), limits.api_keys),
            audit: Audit::new(store.clone()),
            auth: Auth::new(store.clone(), tokens),
            configs: Configs::new(store.clone(), limits.config_versions),
            former_nodes: FormerNodes::new(store.clone()),
            join_tokens: JoinTokens::new(store.clone(), limits.join_tokens),
            publishes: Publishes::new(store.clone(), Arc::clone(&nodes), Arc::clone(&sessions)),
            nodes,
            sessions,
            enrolments: Enrolments::new(),
            gate: Gate::new(
                grpc_tls.and_then(|tls| tls.clients.as_ref()).map(|clients| clients.certificates),
            ),
            own_certificates: Vec::new(),
            users: Users::new(store.clone(), limits.users),
            store,
        })
    }

    /// The same with our own certificates, so that their end is not overlooked.
    pub(crate) fn with_certificates(mut self, certificates: Vec<(&'static str, u64)>) -> Self {
        self.own_certificates = certificates;
        self
    }

    /// Gives the store of a version before what it lacks, and makes the user `admin` where there is no user at all. `tell` is given the password before the user is stored: a
    /// crash between the two leaves a password without a user, which the next start mends, and not the other way round.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn prepare(&self, at_ms: u64, tell: impl FnOnce(&FirstStart)) -> Result<(), Refusal> {
        migration::migrate(&self.store, &Call::system(at_ms))?;
        self.users
            .make_first(&Call::system(at_ms), |password| tell(&FirstStart { password: password.to_owned() }))
    }

    /// Gives a user a new password, without a login: for the master's host, where whoever may read the store has no
    /// need of one. Nothing but the store is touched.
    ///
    /// # Errors
    /// A master runs, or there is no such user.
    pub(crate) fn reset_password(
        dir: &Path,
        call: &Call,
        name: Option<&str>,
    ) -> Result<(String, String), String> {
        let store = Store::open(dir, &TABLES.concat()).map_err(|error| error.to_string())?;
        Users::new(store, u64::MAX).reset_password(call, name).map_err(|refusal| refusal.message)
    }

    /// Writes a copy of the store as it is now.
    ///
    /// # Errors
    /// The file is there already or cannot be written.
    pub(crate) fn back_up(&self, to: &Path) -> Result<(), StoreError> {
        self.store.back_up(to)
    }

    /// A copy of the store as it is now, in a file without a name. Noted in the audit log, since it holds everything.
    ///
    /// # Errors
    /// The disk is full, or the store fails.
    pub(crate) fn copy(&self, call: &Call) -> Result<File, Refusal> {
        let path = self.store.path().with_file_name(format!("backup-{}.redb", secret::new_id()));
        self.store.change::<_, Refusal>(|_| Ok(((), call.done("backup.read", "store", ""))))?;
        self.store.back_up(&path)?;
        let copy = File::open(&path);
        let removed = std::fs::remove_file(&path);
        removed.and(copy).map_err(|error| Refusal::internal(&error))
    }

    /// Whose credential this is (a login token or an API key), if it reaches to this.
    ///
    /// # Errors
    /// It is none, no longer good, or does not reach so far.
    pub(crate) fn identify(
        &self,
        call: &Call,
        credential: &str,
        resource: &str,
        access: Access,
    ) -> Result<Identity, Refusal> {
        match credential.split_once('.') {
            Some((KEY_PREFIX, _)) => self.api_keys.identify(credential, resource, access, call.at_ms),
            Some(_) | None => self.auth.identify(call, credential),
        }
    }

    /// Enrols a node; what is refused is noted in the audit log, and whoever is refused too often has to wait.
    ///
    /// # Errors
    /// The wish could not be read (the field and why), or the node is not let in.
    pub(crate) fn enrol(
        &self,
        call: &Call,
        wish: Result<Enrolment, (&'static str, String)>,
        certificate: Option<&ClientCertificate>,
    ) -> Result<(), Refusal> {
        self.enrolments.check(call)?;
        let target = wish.as_ref().map_or(String::new(), |wish| wish.id.as_str().to_owned());
        let wish = wish.map_err(|(field, message)| Refusal::invalid(field, "malformed", message));
        let enrolled = self.gate.pass(certificate).and_then(|certificate| {
            let wish = wish?;
            certificate.map(|certificate| certificate.speak_for(wish.id.as_str())).transpose()?;
            self.nodes.enrol(call, &wish, certificate)
        });
        if let Err(refusal) = &enrolled {
            self.enrolments.count(call);
            self.audit.note_refused(call, "nodes.enrol", &target, &refusal.message);
        }
        enrolled
    }

    /// Whether an agent may open a session, as far as is known of it: by its credential, or by its client certificate,
    /// which has to be good in any case. `node` is who it says it is, once it has. A refusal is noted in the audit log.
    ///
    /// # Errors
    /// It may not, or what it shows could not be read.
    pub(crate) fn admit(
        &self,
        call: &Call,
        claim: Result<&Claim, &Refusal>,
        node: Option<&str>,
    ) -> Result<(), Refusal> {
        let admitted = claim.map_err(Clone::clone).and_then(|claim| self.check(claim, node, call.at_ms));
        if let Err(refusal) = &admitted {
            let credential = claim.ok().and_then(|claim| claim.credential.as_ref());
            let of_credential = credential.map(|credential| credential.node().as_str());
            let target = node.or(of_credential).unwrap_or_default();
            self.audit.note_refused(call, "nodes.connect", target, &refusal.message);
        }
        admitted
    }

    fn check(&self, claim: &Claim, node: Option<&str>, at_ms: u64) -> Result<(), Refusal> {
        let certificate = self.gate.pass(claim.certificate.as_deref())?;
        let Some(credential) = &claim.credential else {
            let missing = || {
                let message = "the request has neither a node's credential nor a client certificate";
                Refusal::of(Kind::Unauthenticated, "authorization", "missing", message)
            };
            let certificate = certificate.ok_or_else(missing)?;
            let Some(node) = node else { return Ok(()) };
            certificate.speak_for(node)?;
            return self.nodes.identify_by_certificate(certificate, node);
        };
        self.nodes.identify(credential, at_ms)?;
        let its_node = credential.node().as_str();
        if node.is_some_and(|node| node != its_node) {
            let message = "the credential is another node's";
            return Err(Refusal::of(Kind::Forbidden, "node_id", "other_node", message));
        }
        certificate.map_or(Ok(()), |certificate| certificate.speak_for(its_node))
    }

    /// Whether the store answers, and takes changes.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn look(&self) -> Result<(), Refusal> {
        Ok(self.store.look()?)
    }

    /// Brings to the disk what agents have reported.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.store.flush()
    }
}
