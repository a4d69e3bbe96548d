//! The agent's policy against models of all around it, in simulated time: publishes good and bad, lost messages, cut
//! networks, a master that is away, a data plane that dies, and an agent that is killed at every step it takes.
//!
//! `SEED=n cargo test -p control-agent --test simulation` replays one run, and with `TRACE=1` tells what went
//! in and out of the agent.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod dataplane;
mod world;

use std::time::Duration;

use proto::v1;

use dataplane::is_good;
use world::World;

const SEEDS: u64 = 600;
const FAULTS: u32 = 60;
/// Twice the longest back-off, and the three tries that a deadly config gets.
const HEALING: Duration = Duration::from_secs(180);

const KINDS: [&str; 7] = ["good", "good", "invalid", "refused", "deadly", "at once deadly", "dark"];
const COMMANDS: [v1::CommandKind; 6] = [
    v1::CommandKind::Reload,
    v1::CommandKind::Restart,
    v1::CommandKind::Status,
    v1::CommandKind::Logs,
    v1::CommandKind::Drain,
    v1::CommandKind::Undrain,
];

#[test]
fn converges_whatever_happens_on_the_way() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..SEEDS,
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
    match world.random.below(14) {
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
        _ => {
            let kind = COMMANDS[usize::try_from(world.random.below(6)).unwrap()];
            world.command(kind);
        }
    }
}

/// The data plane serves what is wanted, or the last good one, and the master knows which; and how each command ended.
fn assert_converged(world: &World) {
    assert!(world.is_dataplane_up());
    assert_eq!(world.missing_results(), Vec::<&String>::new());
    let has_last_good = world.last_good() != "the data plane's own file";
    if has_last_good || !world.has_forgotten_before {
        assert_eq!(world.serves(), world.last_good(), "something else than the last good config is served");
    }
    let Some(desired) = &world.master.desired else { return };
    if is_good(desired.text()) {
        assert_eq!(world.serves(), &**desired.text());
        assert_eq!(world.master.applied, desired.revision());
    } else {
        assert_eq!(world.master.refused, desired.revision(), "the master does not know of the refusal");
        assert_ne!(world.master.applied, desired.revision());
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
        let new = world.master.desired.as_ref().unwrap().text().to_string();
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
    assert_eq!(world.serves(), "good 1");
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
    assert_eq!(world.master.commands.len(), COMMANDS.len());
    for (id, (_, result)) in &world.master.commands {
        assert_eq!(*result, Some(v1::CommandOutcome::Succeeded), "{id}");
    }
}

#[test]
fn a_command_that_hangs_is_ended_at_its_deadline_or_when_it_is_cancelled() {
    let mut world = World::new(3);
    world.run_for(Duration::from_secs(5));
    world.hang_programs(true);
    world.command(v1::CommandKind::Logs);
    world.run_for(Duration::from_millis(4_900));
    assert_eq!((world.missing_results().len(), world.aborted.len()), (1, 0));
    world.run_for(Duration::from_millis(200));
    world.command(v1::CommandKind::Restart);
    world.run_for(Duration::from_secs(1));
    world.cancel_command();
    world.run_for(Duration::from_secs(1));
    let outcomes: Vec<_> = world.master.commands.values().map(|(_, result)| *result).collect();
    assert_eq!(outcomes, [Some(v1::CommandOutcome::TimedOut), Some(v1::CommandOutcome::Cancelled)]);
    assert_eq!(world.aborted.len(), 2, "their programs were ended");
}
