//! The agent's own policy against the master's own services and store, in simulated time: publishes good and bad, lost
//! messages, cut networks, a data plane that dies, and an agent and a master that are killed at whatever they do.
//!
//! `SEED=n cargo test -p master-lite simulation` replays one run, and with `TRACE=1` tells what went in and out of the
//! agent; `SEEDS=n` runs so many.

mod credentials;
mod dataplane;
mod master;
mod platter;
mod random;
mod world;

use std::time::Duration;

use crate::service::commands::command::Command;
use crate::service::commands::task::RunState;
use crate::service::convergence::Progress;

use dataplane::is_good;
use world::{World, text_of};

const SEEDS: u64 = 250;
const FAULTS: u32 = 60;
/// Twice the longest back-off, and the three tries that a deadly config gets.
const HEALING: Duration = Duration::from_secs(180);

const KINDS: [&str; 7] = ["good", "good", "invalid", "refused", "deadly", "at once deadly", "dark"];
const COMMANDS: [Command; 6] =
    [Command::Reload, Command::Restart, Command::Status, Command::Logs, Command::Drain, Command::Undrain];

#[test]
fn converges_whatever_happens_on_the_way() {
    let wish = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seeds = match wish("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..wish("SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let run = std::panic::catch_unwind(|| live_and_heal(World::new(seed)));
        if let Err(panic) = run {
            eprintln!("replay with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn live_and_heal(mut world: World) -> World {
    for _ in 0..FAULTS {
        // Most of the time within one apply, so that a fault meets each of its steps.
        let pause = if world.random.one_in(4) { 20_000 } else { 40 };
        let pause = Duration::from_millis(world.random.below(pause));
        world.run_for(pause);
        befall(&mut world);
    }
    world.set_master_down(false);
    world.cut_network(false);
    world.fill_disk(false);
    world.hang_programs(false);
    world.run_for(HEALING);
    world.drain_by_hand(false);
    world.let_in();
    world.run_for(HEALING);
    world.recover_credential();
    world.run_for(HEALING);
    assert_converged(&world);
    world
}

/// Without this a seed would be no way to replay a failure: a clock or a random order has found its way in.
#[test]
fn a_seed_replays_its_run_to_the_last_event() {
    let recorded = |seed| {
        let mut world = World::new(seed);
        world.record = Some(Vec::new());
        live_and_heal(world).record.unwrap()
    };
    for seed in 0..20 {
        let (first, again) = (recorded(seed), recorded(seed));
        let difference = first.iter().zip(&again).find(|(first, again)| first != again);
        assert_eq!(difference, None, "seed {seed}");
        assert!(first.len() > 500 && first.len() == again.len(), "seed {seed}: {} events", first.len());
    }
    assert_ne!(recorded(1), recorded(2));
}

fn befall(world: &mut World) {
    match world.random.below(18) {
        0..=3 => {
            let kind = KINDS[usize::try_from(world.random.below(7)).unwrap()];
            world.publish(kind);
        }
        4 => world.drop_session(),
        5 | 6 => world.crash_agent(),
        7 => world.kill_dataplane(),
        8 => {
            let is_cut = world.random.one_in(2);
            world.cut_network(is_cut);
        }
        9 => {
            let is_down = world.random.one_in(2);
            world.set_master_down(is_down);
        }
        10 => {
            let is_full = world.random.one_in(2);
            world.fill_disk(is_full);
        }
        11 => {
            let programs_hang = world.random.one_in(2);
            world.hang_programs(programs_hang);
        }
        12 => world.cancel_command(),
        13 => world.steal_credential(),
        14 => {
            let takes_over = world.random.one_in(4);
            world.intrude(takes_over);
        }
        15 => world.claim_another_place(),
        16 if world.random.one_in(2) => world.delete_or_let_in(),
        _ => {
            let kind = COMMANDS[usize::try_from(world.random.below(6)).unwrap()];
            world.command(kind);
        }
    }
}

/// The data plane serves what is wanted, or the last good one, and the master knows which; and how each command ended.
fn assert_converged(world: &World) {
    assert!(world.is_dataplane_up());
    world.assert_told_rightly();
    let has_last_good = world.last_good() != "the data plane's own file";
    if has_last_good || !world.has_forgotten_before {
        assert_eq!(world.serves(), world.last_good(), "something else than the last good config is served");
    }
    let Some((revision, text)) = &world.desired else { return };
    let node = world.master.progress(world.now_ms());
    assert_eq!(node.wanted.as_ref().map(|(revision, _)| revision), Some(revision), "a publish is forgotten");
    if is_good(text) {
        assert_eq!(world.serves(), text);
        assert_eq!((node.progress, node.said.applied), (Progress::Applied, *revision), "{}", node.reason);
    } else {
        assert_eq!((node.progress, node.said.refused), (Progress::Refused, *revision), "{}", node.reason);
        assert_ne!(node.said.applied, *revision);
    }
}

/// Ends the agent after every single millisecond of an apply.
#[test]
fn a_crash_at_any_moment_of_an_apply_leaves_the_old_or_the_new() {
    for crash_at_ms in 0..150 {
        let mut world = World::new(crash_at_ms);
        world.run_for(Duration::from_secs(5));
        world.publish("good");
        world.run_for(Duration::from_secs(5));
        let old = world.serves().to_owned();
        world.publish("good");
        world.run_for(Duration::from_millis(crash_at_ms));
        world.crash_agent();
        world.set_master_down(true);
        world.run_for(Duration::from_secs(30));
        // Without a master: the one or the other, whole, and the one that a restart would bring.
        assert_eq!(world.serves(), world.last_good());
        let (_, new) = world.desired.clone().unwrap();
        assert!([&old, &new].contains(&&world.serves().to_owned()), "{}", world.serves());
        world.set_master_down(false);
        world.run_for(Duration::from_secs(60));
        assert_eq!(world.serves(), new);
    }
}

#[test]
fn serves_the_last_good_config_without_a_master() {
    let mut world = World::new(1);
    world.publish("good");
    world.run_for(Duration::from_secs(5));
    world.set_master_down(true);
    // Host and agent start anew; the master stays away.
    world.kill_dataplane();
    world.crash_agent();
    world.run_for(Duration::from_secs(10));
    assert_eq!(world.serves(), text_of("good", 1));
}

#[test]
fn every_command_gets_its_one_result() {
    let mut world = World::new(2);
    world.run_for(Duration::from_secs(5));
    for kind in COMMANDS {
        world.command(kind);
        world.drop_session();
        world.run_for(Duration::from_secs(40));
    }
    let states: Vec<_> = world.runs().iter().map(|run| run.state).collect();
    assert_eq!(states, [RunState::Succeeded; COMMANDS.len()]);
}

#[test]
fn a_command_that_hangs_is_ended_at_its_deadline_or_when_it_is_cancelled() {
    let mut world = World::new(3);
    world.run_for(Duration::from_secs(5));
    world.hang_programs(true);
    world.command(Command::Logs);
    world.run_for(Duration::from_millis(4_900));
    assert_eq!((world.runs()[0].state, world.aborted.len()), (RunState::Sent, 0));
    world.run_for(Duration::from_millis(200));
    world.command(Command::Restart);
    world.run_for(Duration::from_secs(1));
    world.cancel_command();
    world.run_for(Duration::from_secs(1));
    let states: Vec<_> = world.runs().iter().map(|run| run.state).collect();
    assert_eq!(states, [RunState::TimedOut, RunState::Cancelled]);
    assert_eq!(world.aborted.len(), 2, "their programs were ended");
}

#[test]
fn a_stolen_credential_is_noticed_and_void_as_soon_as_its_owner_is_back() {
    let mut world = World::new(4);
    world.run_for(Duration::from_secs(5));
    world.steal_credential();
    assert!(world.intrude(false), "a good copy is as good as what it is a copy of");
    assert!(!world.master.knows_of_copy());
    // The owner is told that somebody else is there, comes back, and is the one that was there first.
    world.run_for(Duration::from_secs(35));
    assert!(world.master.knows_of_copy());
    assert!(!world.intrude(false), "it was asked for another at once: the copy is void");
    assert!(world.is_agent_live());
}

#[test]
fn an_owner_who_was_robbed_for_good_is_let_in_again_by_hand() {
    let mut world = World::new(5);
    world.run_for(Duration::from_secs(5));
    world.steal_credential();
    world.run_for(Duration::from_secs(20));
    // Whoever is there for long enough is asked for another, and its owner is away for longer.
    world.cut_network(true);
    world.run_for(Duration::from_secs(15));
    assert!(world.intrude(true));
    world.cut_network(false);
    world.run_for(Duration::from_secs(60));
    assert!(!world.is_agent_live() && world.master.knows_of_copy());
    world.recover_credential();
    world.run_for(Duration::from_secs(60));
    assert!(world.is_agent_live() && !world.intrude(false));
}

#[test]
fn a_deleted_node_stays_away_until_it_is_let_in_and_its_copies_for_good() {
    let mut world = World::new(6);
    world.run_for(Duration::from_secs(5));
    world.steal_credential();
    world.delete_or_let_in();
    world.run_for(Duration::from_secs(120));
    assert!(!world.is_agent_live() && !world.intrude(false));
    world.delete_or_let_in();
    world.run_for(Duration::from_secs(120));
    assert!(world.is_agent_live() && !world.intrude(false));
}

#[test]
fn an_agent_that_dies_while_its_credential_is_replaced_is_not_locked_out() {
    let mut world = World::new(7);
    world.run_for(Duration::from_secs(60));
    let began = *world.changes_began.first().expect("a credential is replaced after half a minute");
    for crash_after_ms in 0..80 {
        let mut world = World::new(7);
        world.run_for(began + Duration::from_millis(crash_after_ms));
        world.crash_agent();
        world.run_for(Duration::from_secs(10));
        assert!(world.is_agent_live(), "after a crash {crash_after_ms} ms later");
        assert!(!world.master.knows_of_copy());
    }
}
