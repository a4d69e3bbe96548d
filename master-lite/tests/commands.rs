//! Commands: who gets them, what is known of each node meanwhile and after, and what becomes of them when a session, an
//! agent or the master ends.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use proto::v1::agent_message::Kind as Said;
use proto::v1::master_message::Kind as Told;
use proto::v1::{CommandKind, CommandOutcome, CommandOutput, CommandResult, OutputStream};
use serde_json::{Value, json};
use story::agent::{Agent, Answer, Session, runtime};
use story::client::Client;
use story::{Master, eventually};

const COMMANDS: &str = "/api/v1/commands";

/// Enrolled agents, not connected yet.
fn agents(master: &Master, nodes: &[(&str, &str)]) -> Vec<Agent> {
    let (runtime, token) = (runtime(), master.join_token(100));
    let enrolled = |(node, region): &(&str, &str)| {
        let agent = Agent::new(&runtime, node).in_region(region);
        agent.enrol(master.grpc(), &token).unwrap();
        agent
    };
    nodes.iter().map(enrolled).collect()
}

/// The command that a session is told, once it is.
fn commanded(session: &Session) -> proto::v1::Command {
    eventually("a command comes", || {
        session.told().into_iter().find_map(|told| match told {
            Told::Command(command) => Some(command),
            Told::Welcome(_)
            | Told::HeartbeatAck(_)
            | Told::ConfigOffer(_)
            | Told::CommandCancel(_)
            | Told::Goodbye(_)
            | Told::CredentialWanted(_)
            | Told::CredentialTaken(_)
            | Told::Intervals(_) => None,
        })
    })
}

fn write(session: &Session, id: &str, sequence: u64, data: &str) {
    let stream = OutputStream::Stdout.into();
    let data = data.to_owned().into_bytes().into();
    session.say(Said::CommandOutput(CommandOutput { command_id: id.to_owned(), sequence, stream, data }));
}

fn end(session: &Session, id: &str, outcome: CommandOutcome, exit_code: i32) {
    session.say(Said::CommandResult(CommandResult {
        command_id: id.to_owned(),
        outcome: outcome.into(),
        message: format!("{outcome:?}"),
        exit_code: Some(exit_code),
        took_ms: 12,
        ..CommandResult::default()
    }));
}

fn task(client: &Client, id: &str) -> Value {
    client.get(&format!("{COMMANDS}/{id}")).data().clone()
}

/// The result of a node, in a task.
fn result<'a>(task: &'a Value, node: &str) -> &'a Value {
    let results = task["results"].as_array().unwrap();
    results.iter().find(|result| result["node"] == node).unwrap_or_else(|| panic!("no {node}: {task}"))
}

fn until(client: &Client, id: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || Some(task(client, id)).filter(|task| is_so(task)))
}

fn begin(client: &Client, body: Value) -> (String, Value) {
    let answer = client.post(COMMANDS, &body);
    assert_eq!(answer.status, 201, "{}", answer.json);
    (answer.data()["task_id"].as_str().unwrap().to_owned(), answer.data().clone())
}

#[test]
fn a_region_is_commanded_and_each_node_has_its_own_result() {
    let master = Master::start();
    let admin = master.admin();
    let agents = agents(&master, &[("a", "hk"), ("b", "hk"), ("c", "hk"), ("d", "sg")]);
    let [a, b, d] = [0, 1, 3].map(|index| agents[index].connect(master.grpc(), Answer::Apply).unwrap());
    let (id, begun) = begin(
        &admin,
        json!({ "command": "logs", "lines": 20, "target_type": "region", "target_ids": ["hk"] }),
    );
    assert_eq!(begun["state"], "running");
    assert_eq!((&begun["progress"]["total"], &begun["progress"]["offline"]), (&json!(3), &json!(1)));
    assert_eq!(result(&begun, "c")["state"], "offline", "an offline target is said so at once");
    let command = commanded(&a);
    assert_eq!((command.kind(), command.log_lines, &command.command_id), (CommandKind::Logs, 20, &id));
    assert!((1..=30_000).contains(&command.deadline_ms));
    write(&a, &id, 0, "one\n");
    write(&a, &id, 1, "two\n");
    let halfway = until(&admin, &id, "output is there while it runs", |task| {
        result(task, "a")["stdout"] == "one\ntwo\n"
    });
    assert_eq!(result(&halfway, "a")["state"], "running");
    assert_eq!(result(&halfway, "b")["state"], "sent");
    end(&a, &id, CommandOutcome::Succeeded, 0);
    end(&b, &commanded(&b).command_id, CommandOutcome::Failed, 3);
    let done = until(&admin, &id, "it ends", |task| task["state"] != "running");
    assert_eq!(done["state"], "failed");
    let progress =
        json!({ "total": 3, "running": 0, "succeeded": 1, "failed": 1, "cancelled": 0, "offline": 1 });
    assert_eq!(done["progress"], progress);
    assert_eq!((&result(&done, "b")["exit_code"], &result(&done, "b")["took_ms"]), (&json!(3), &json!(12)));
    assert_eq!(result(&done, "a")["stdout"], "one\ntwo\n");
    assert!(!d.told().iter().any(|told| matches!(told, Told::Command(_))), "another region was commanded");
    let listed = admin.get(COMMANDS);
    assert_eq!(listed.data()[0]["task_id"], id);
    assert_eq!(admin.get("/api/v1/audit?action=commands.create").json["meta"]["total"], 1);
}

#[test]
fn a_node_is_commanded_by_its_own_path() {
    let master = Master::start();
    let admin = master.admin();
    let agents = agents(&master, &[("a", "hk")]);
    let kinds = [
        ("restart", CommandKind::Restart),
        ("reload", CommandKind::Reload),
        ("drain", CommandKind::Drain),
        ("undrain", CommandKind::Undrain),
    ];
    for (name, kind) in kinds {
        let session = agents[0].connect(master.grpc(), Answer::Apply).unwrap();
        let begun = admin.send("POST", &format!("/api/v1/nodes/a/{name}"), None);
        assert_eq!((begun.status, &begun.data()["command"]), (201, &json!(name)), "{}", begun.json);
        let command = commanded(&session);
        assert_eq!(command.kind(), kind);
        end(&session, &command.command_id, CommandOutcome::Succeeded, 0);
        until(&admin, &command.command_id, "it succeeds", |task| task["state"] == "succeeded");
    }
    admin.send("POST", "/api/v1/nodes/nobody/restart", None).assert_refused(404, "id");
    admin.send("POST", "/api/v1/nodes/..%2fa/restart", None).assert_refused(422, "id");
    assert_eq!(admin.send("POST", "/api/v1/nodes/a/halt", None).status, 404);
}

#[test]
fn a_cancel_reaches_the_agent_and_ends_the_task() {
    let master = Master::start();
    let admin = master.admin();
    let agents = agents(&master, &[("a", "hk")]);
    let session = agents[0].connect(master.grpc(), Answer::Apply).unwrap();
    let (id, _) = begin(&admin, json!({ "command": "restart", "target_type": "all" }));
    commanded(&session);
    let cancelled = admin.send("POST", &format!("{COMMANDS}/{id}/cancel"), None);
    assert_eq!(
        (cancelled.status, &cancelled.data()["state"]),
        (200, &json!("running")),
        "the agent has its say"
    );
    eventually("the agent is told", || {
        let is_cancel = |told: &Told| matches!(told, Told::CommandCancel(cancel) if cancel.command_id == id);
        session.told().iter().any(is_cancel).then_some(())
    });
    end(&session, &id, CommandOutcome::Cancelled, 0);
    until(&admin, &id, "it is cancelled", |task| task["state"] == "cancelled");
    admin.send("POST", &format!("{COMMANDS}/{id}/cancel"), None).assert_refused(409, "task_id");
    admin.send("POST", &format!("{COMMANDS}/none/cancel"), None).assert_refused(404, "task_id");
}

#[test]
fn a_command_without_a_result_times_out() {
    let master = Master::start();
    let admin = master.admin();
    let agents = agents(&master, &[("a", "hk")]);
    let session = agents[0].connect(master.grpc(), Answer::Apply).unwrap();
    let (id, _) = begin(
        &admin,
        json!({ "command": "status", "target_type": "node", "target_ids": ["a"], "timeout": "100ms" }),
    );
    write(&session, &id, 0, "half");
    let done = until(&admin, &id, "it times out", |task| task["state"] == "failed");
    assert_eq!(
        (&result(&done, "a")["state"], &result(&done, "a")["stdout"]),
        (&json!("timed_out"), &json!("half"))
    );
}

#[test]
fn a_task_outlives_a_kill_of_the_master_and_a_lost_session() {
    let mut master = Master::start();
    let mut agents = agents(&master, &[("a", "hk"), ("b", "hk")]);
    let sessions: Vec<Session> =
        agents.iter().map(|agent| agent.connect(master.grpc(), Answer::Apply).unwrap()).collect();
    let wish =
        json!({ "command": "restart", "target_type": "role", "target_ids": ["edge"], "timeout": "5m" });
    let (id, _) = begin(&master.admin(), wish);
    sessions.iter().for_each(|session| drop(commanded(session)));
    master.restart_after_kill();
    let admin = master.admin();
    assert_eq!(task(&admin, &id)["progress"]["running"], 2);
    let again = agents[0].connect(master.grpc(), Answer::Apply).unwrap();
    assert_eq!(commanded(&again).command_id, id, "the same instance is asked again");
    end(&again, &id, CommandOutcome::Succeeded, 0);
    agents[1].instance = 2;
    let anew = agents[1].connect(master.grpc(), Answer::Apply).unwrap();
    let done = until(&admin, &id, "it ends", |task| task["state"] != "running");
    assert_eq!(result(&done, "a")["state"], "succeeded");
    assert_eq!(result(&done, "b")["state"], "lost");
    assert!(!anew.told().iter().any(|told| matches!(told, Told::Command(_))), "it was run twice");
}

#[test]
fn a_deleted_nodes_run_ends() {
    let master = Master::start();
    let admin = master.admin();
    let agents = agents(&master, &[("a", "hk")]);
    let session = agents[0].connect(master.grpc(), Answer::Apply).unwrap();
    let (id, _) = begin(&admin, json!({ "command": "restart", "target_type": "all" }));
    commanded(&session);
    assert_eq!(admin.delete("/api/v1/nodes/a").status, 200);
    let done = until(&admin, &id, "it ends", |task| task["state"] == "failed");
    assert_eq!(result(&done, "a")["state"], "lost");
}

#[test]
fn so_many_tasks_are_under_way_and_not_more() {
    let master = Master::start();
    let admin = master.admin();
    let agents = agents(&master, &[("a", "hk")]);
    let session = agents[0].connect(master.grpc(), Answer::Apply).unwrap();
    let wish = json!({ "command": "status", "target_type": "all", "timeout": "10m" });
    // One at a time: an agent that reads slowly is told to go.
    let ids: Vec<String> = (1..=50)
        .map(|count| {
            let (id, _) = begin(&admin, wish.clone());
            eventually("it is sent", || {
                let told = session.told();
                (told.iter().filter(|told| matches!(told, Told::Command(_))).count() == count).then_some(())
            });
            id
        })
        .collect();
    admin.post(COMMANDS, &wish).assert_refused(409, "command");
    end(&session, &ids[0], CommandOutcome::Succeeded, 0);
    until(&admin, &ids[0], "it ends", |task| task["state"] == "succeeded");
    eventually("there is room again", || (admin.post(COMMANDS, &wish).status == 201).then_some(()));
}

#[test]
fn bad_commands_are_refused_with_the_field_and_do_nothing() {
    let master = Master::start();
    let admin = master.admin();
    admin
        .post(COMMANDS, &json!({ "command": "status", "target_type": "all" }))
        .assert_refused(409, "target_type");
    agents(&master, &[("a", "hk")]);
    let refusals = [
        (400, "command", json!({ "command": "rm -rf /", "target_type": "all" })),
        (400, "command", json!({ "target_type": "all" })),
        (400, "target_type", json!({ "command": "status", "target_type": "planet" })),
        (400, "shell", json!({ "command": "status", "target_type": "all", "shell": "sh" })),
        (422, "target_ids", json!({ "command": "status", "target_type": "all", "target_ids": ["a"] })),
        (422, "target_ids", json!({ "command": "status", "target_type": "node" })),
        (
            422,
            "target_ids[1]",
            json!({ "command": "status", "target_type": "node", "target_ids": ["a", "../b"] }),
        ),
        (404, "target_ids[0]", json!({ "command": "status", "target_type": "node", "target_ids": ["b"] })),
        (404, "target_ids[0]", json!({ "command": "status", "target_type": "region", "target_ids": ["sg"] })),
        (404, "target_ids[0]", json!({ "command": "status", "target_type": "role", "target_ids": ["core"] })),
        (422, "timeout", json!({ "command": "status", "target_type": "all", "timeout": "1ms" })),
        (400, "timeout", json!({ "command": "status", "target_type": "all", "timeout": "soon" })),
        (422, "lines", json!({ "command": "status", "target_type": "all", "lines": 5 })),
        (422, "lines", json!({ "command": "logs", "target_type": "all", "lines": 0 })),
    ];
    for (status, field, body) in refusals {
        admin.post(COMMANDS, &body).assert_refused(status, field);
    }
    admin.get(&format!("{COMMANDS}/..%2f..%2fetc")).assert_refused(422, "task_id");
    assert_eq!(admin.get(COMMANDS).json["meta"]["total"], 0, "a refused command was begun");
    let noted = admin.get("/api/v1/audit?action=commands.create&outcome=refused");
    assert_eq!(noted.json["meta"]["total"], 15);
}
