//! Agents that are known by their certificates: who gets in by one, and everybody who does not, with what they and the
//! audit log are told.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use story::agent::{Agent, Answer, runtime};
use story::authority::{Authority, Identity};
use story::client::Client;
use story::{Master, eventually};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::{Code, Status};

/// A master that knows agents by the certificates of an authority.
struct Fleet {
    authority: Authority,
    master: Master,
    runtime: Arc<Runtime>,
    files: TempDir,
}

/// Certificates are required.
const REQUIRED: &str = "";
/// Who has none enrols with a join token.
const OPTIONAL: &str = ", client_certificates = \"optional\"";

impl Fleet {
    fn start(more: &str) -> Self {
        let (authority, files) = (Authority::new(), tempfile::tempdir().unwrap());
        let master = Master::start_listening("", &authority.listener(files.path(), more));
        Self { authority, master, runtime: runtime(), files }
    }

    fn agent(&self, node: &str, own: Option<&Identity>) -> Agent {
        Agent::new(&self.runtime, node).over_tls(&self.authority.pem, own)
    }

    fn enrol(&self, node: &str, own: Option<&Identity>, token: &str) -> Result<(), Status> {
        self.agent(node, own).enrol(self.master.grpc(), token)
    }
}

/// Refused for good, for this reason.
#[track_caller]
fn assert_refused<T>(result: Result<T, Status>, reason: &str) {
    let Err(status) = result else { panic!("it was let in, and not refused: {reason}") };
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let message = status.message();
    assert!(message.starts_with("client_certificate: ") && message.contains(reason), "{message}");
}

/// What the audit log has of refusals, the newest first: of which node, and why.
fn refusals(admin: &Client, action: &str) -> Vec<(String, String)> {
    let noted = admin.get(&format!("/api/v1/audit?action={action}&outcome=refused"));
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
    let entries = noted.data().as_array().unwrap();
    entries.iter().map(|entry| (text(entry, "target"), text(entry, "detail"))).collect()
}

#[test]
fn a_certificate_lets_its_node_in_without_a_token() {
    let fleet = Fleet::start(REQUIRED);
    let (admin, grpc) = (fleet.master.admin(), fleet.master.grpc());
    let own = fleet.authority.issue_between("hk-1", 2020, 2999);
    let agent = fleet.agent("hk-1", Some(&own));
    agent.enrol(grpc, "").unwrap();
    agent.enrol(grpc, "").expect("the answer to the first may have been lost");
    agent.connect(grpc, Answer::Apply).unwrap().beat(1);
    eventually("the node is online", || {
        (admin.get("/api/v1/nodes/hk-1").data()["state"] == "online").then_some(())
    });
    assert_eq!(
        admin.get("/api/v1/nodes/hk-1").data()["certificate_expires_at"],
        json!("2999-01-01T00:00:00.000Z")
    );
    let noted = admin.get("/api/v1/audit?action=nodes.enrol");
    assert_eq!(noted.json["meta"]["total"], 1, "{}", noted.json);
    assert_eq!(
        (&noted.data()[0]["actor"], &noted.data()[0]["detail"]),
        (&json!("hk-1"), &json!("with its client certificate"))
    );

    // The certificate alone says who it is, too: a client that keeps no credential needs none.
    fleet.agent("hk-1", Some(&own)).connect_by_certificate(grpc).unwrap();
    // One certificate may be for several nodes, by its alternative names.
    let shared = fleet.authority.issue_for(&["sg-1", "sg-2"]);
    for node in ["sg-1", "sg-2"] {
        fleet.enrol(node, Some(&shared), "").unwrap();
        fleet.agent(node, Some(&shared)).connect_by_certificate(grpc).unwrap();
    }
}

#[test]
fn a_certificate_that_is_no_good_is_refused_with_the_reason_and_noted() {
    let fleet = Fleet::start(REQUIRED);
    let (admin, grpc) = (fleet.master.admin(), fleet.master.grpc());
    let token = fleet.master.join_token(10);
    let good = fleet.authority.issue("a");
    fleet.enrol("a", Some(&good), "").unwrap();

    let cases = [
        (Some(Authority::new().issue("a")), "not signed by an authority of this master"),
        (
            Some(fleet.authority.issue_between("a", 2001, 2002)),
            "expired (it was good until 2002-01-01T00:00:00.000Z)",
        ),
        (
            Some(fleet.authority.issue_between("a", 2998, 2999)),
            "not valid yet (it is from 2998-01-01T00:00:00.000Z on)",
        ),
        (Some(fleet.authority.issue("b")), "is for b, not for a"),
        (Some(fleet.authority.issue("*")), "is for *, not for a"),
        (None, "without a client certificate"),
    ];
    for (own, reason) in &cases {
        // A join token, and the credential of the node, change nothing about it.
        assert_refused(fleet.enrol("a", own.as_ref(), &token), reason);
        assert_refused(fleet.agent("a", own.as_ref()).connect(grpc, Answer::Apply), reason);
        assert_refused(fleet.agent("a", own.as_ref()).connect_by_certificate(grpc), reason);
        let (enrolling, connecting) = (refusals(&admin, "nodes.enrol"), refusals(&admin, "nodes.connect"));
        assert!(enrolling[0].0 == "a" && enrolling[0].1.contains(reason), "{reason}: {enrolling:?}");
        assert!(connecting[0].1.contains(reason) && connecting[1].1.contains(reason), "{connecting:?}");
        assert_eq!(connecting[1].0, "a", "{connecting:?}");
    }
    assert_eq!(refusals(&admin, "nodes.enrol").len(), cases.len());
    assert_eq!(refusals(&admin, "nodes.connect").len(), 2 * cases.len());
    assert_eq!(admin.get("/api/v1/nodes").json["meta"]["total"], 1, "a refused node is enrolled");
    assert_eq!(admin.get("/api/v1/join-tokens").data()[0]["uses"], 0, "a refused enrolment used the token");
    fleet.agent("a", Some(&good)).connect(grpc, Answer::Apply).expect("the good one is let in all the while");
    let unknown = fleet.agent("b", Some(&fleet.authority.issue("b"))).connect_by_certificate(grpc);
    assert_eq!(
        unknown.err().unwrap().code(),
        Code::Unauthenticated,
        "a node that is not enrolled has no session"
    );
}

#[test]
fn where_certificates_are_optional_a_token_still_lets_in_and_a_bad_certificate_does_not() {
    let fleet = Fleet::start(OPTIONAL);
    let (grpc, token) = (fleet.master.grpc(), fleet.master.join_token(2));
    fleet.enrol("by-token", None, &token).unwrap();
    fleet.agent("by-token", None).connect(grpc, Answer::Apply).unwrap();
    fleet.enrol("by-certificate", Some(&fleet.authority.issue("by-certificate")), "").unwrap();

    let strange = Authority::new().issue("c");
    assert_refused(fleet.enrol("c", Some(&strange), &token), "not signed by an authority");
    let nothing = fleet.enrol("c", None, "").unwrap_err();
    assert!(
        nothing.code() == Code::Unauthenticated && nothing.message().starts_with("join_token: "),
        "{nothing}"
    );
    let nothing = fleet.agent("by-token", None).connect_by_certificate(grpc).err().unwrap();
    assert!(
        nothing.code() == Code::Unauthenticated && nothing.message().starts_with("authorization: "),
        "{nothing}"
    );
    // Another node's certificate is no help to a node with a credential of its own, nor the other way round.
    let other = fleet.authority.issue("by-certificate");
    assert_refused(
        fleet.agent("by-token", Some(&other)).connect(grpc, Answer::Apply),
        "is for by-certificate, not",
    );
}

#[test]
fn a_node_that_lost_its_credential_is_let_in_again_by_its_certificate() {
    let fleet = Fleet::start(REQUIRED);
    let (admin, grpc) = (fleet.master.admin(), fleet.master.grpc());
    let own = fleet.authority.issue("a");
    fleet.enrol("a", Some(&own), "").unwrap();
    admin.put("/api/v1/nodes/a/tags/canary", &json!({})).data();
    let anew = fleet.agent("a", Some(&own)).with_secret(7);
    assert_eq!(anew.connect(grpc, Answer::Apply).err().unwrap().code(), Code::Unauthenticated);
    anew.enrol(grpc, "").unwrap();
    anew.connect(grpc, Answer::Apply).unwrap();
    assert_eq!(admin.get("/api/v1/nodes/a").data()["tags"], json!(["canary"]), "it is the same node");
    let void = fleet.agent("a", Some(&own)).connect(grpc, Answer::Apply).err().unwrap();
    assert_eq!(void.code(), Code::PermissionDenied, "the credential that was lost is still good");
}

#[test]
fn a_deleted_nodes_certificate_is_void_and_a_new_one_is_good() {
    let mut fleet = Fleet::start(REQUIRED);
    let admin = fleet.master.admin();
    let old = fleet.authority.issue_between("a", 2020, 2999);
    fleet.enrol("a", Some(&old), "").unwrap();
    let session = fleet.agent("a", Some(&old)).connect(fleet.master.grpc(), Answer::Apply).unwrap();
    assert_eq!(admin.delete("/api/v1/nodes/a").status, 200);
    eventually("the session ends", || session.ended());
    fleet.master.restart_after_kill();
    let (grpc, admin) = (fleet.master.grpc(), fleet.master.admin());
    let barred = fleet.enrol("a", Some(&old), "").unwrap_err();
    assert!(barred.code() == Code::PermissionDenied && barred.message().contains("is barred"), "{barred}");
    assert_eq!(admin.delete("/api/v1/barred-nodes/a").status, 200);
    assert_refused(fleet.enrol("a", Some(&old), ""), "from before the node was deleted");
    assert_refused(
        fleet.agent("a", Some(&old)).connect_by_certificate(grpc),
        "from before the node was deleted",
    );

    // Issued after the deletion, to the second: a certificate has no finer times.
    let mut new = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let not_before = SystemTime::now() + Duration::from_secs(1);
    new.not_before = not_before.into();
    let new = fleet.authority.issue_as("a", new);
    eventually("it is valid", || (SystemTime::now() >= not_before).then_some(()));
    let used = fleet.enrol("a", Some(&new), "").unwrap_err();
    assert!(used.message().starts_with("credential_sha256: this credential was used before"), "{used}");
    fleet.agent("a", Some(&new)).with_secret(7).enrol(grpc, "").unwrap();
    fleet.agent("a", Some(&new)).connect_by_certificate(grpc).unwrap();
    assert_refused(
        fleet.agent("a", Some(&old)).connect_by_certificate(grpc),
        "from before the node was deleted",
    );
}

/// The agent's own program, without a data plane; ended with the test.
struct RealAgent {
    child: Child,
    output: Arc<Mutex<String>>,
}

impl RealAgent {
    fn start(fleet: &Fleet, node: &str, own: &Identity) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_millrace-master")).with_file_name("millrace-agent");
        assert!(program.is_file(), "{} is missing: cargo build --workspace", program.display());
        let dir = fleet.files.path().join(node);
        std::fs::create_dir(&dir).unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (ca, cert, key) =
            (file("ca.pem", &fleet.authority.pem), file("agent.pem", &own.0), file("agent.key", &own.1));
        let config = format!(
            "[node]\nid = \"{node}\"\n[master]\nurl = \"https://{}\"\nca = {ca:?}\ncertificate = {cert:?}\nkey = {key:?}\n\
             [dataplane]\nsocket = {:?}\n[state]\ndir = {:?}\n",
            fleet.master.grpc(),
            dir.join("dataplane.sock"),
            dir.join("state"),
        );
        let mut command = Command::new(program);
        command.arg("run").arg("-c").arg(file("agent.toml", &config)).env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = Arc::<Mutex<String>>::default();
        story::collect(child.stderr.take().unwrap(), &output);
        Self { child, output }
    }
}

impl Drop for RealAgent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- what the agent wrote:\n{}---", self.output.lock().unwrap());
        }
    }
}

#[test]
fn the_real_agent_enrols_by_its_certificate_and_logs_why_it_is_refused() {
    let fleet = Fleet::start(REQUIRED);
    let admin = fleet.master.admin();
    let _agent = RealAgent::start(&fleet, "good", &fleet.authority.issue("good"));
    eventually("it has a session", || {
        let status = admin.get("/api/v1/nodes/good/status");
        (status.status == 200 && status.data()["connected"] == true).then_some(())
    });
    let late = RealAgent::start(&fleet, "late", &fleet.authority.issue_between("late", 2001, 2002));
    let reason = "client certificate is refused: it has expired (it was good until 2002-01-01";
    eventually("its log says why", || late.output.lock().unwrap().contains(reason).then_some(()));
    let noted = refusals(&admin, "nodes.enrol");
    assert!(noted[0].0 == "late" && noted[0].1.contains("has expired"), "{noted:?}");
}

#[test]
fn a_client_without_tls_hears_nothing() {
    let fleet = Fleet::start(OPTIONAL);
    let plain = Agent::new(&fleet.runtime, "a");
    assert!(plain.enrol(fleet.master.grpc(), &fleet.master.join_token(1)).is_err());
    assert_eq!(fleet.master.admin().get("/api/v1/nodes").json["meta"]["total"], 0);
}
