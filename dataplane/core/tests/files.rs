//! Claims about the budget of open files: it is a whole, it grows with the limit, and nobody is left without a part.

use dataplane_core::files::{Files, Standing};
use dataplane_core::limit::Admission;
use proptest::prelude::*;
use proto::config::Limits;

const SMALL: Standing = Standing { workers: 1, addresses: 1, probes: 0 };

fn standing() -> impl Strategy<Value = Standing> {
    (1..64_u64, 1..8_u64, 0..100_u64).prop_map(|(workers, addresses, probes)| Standing {
        workers,
        addresses,
        probes,
    })
}

#[test]
fn usual_limits_are_divided_so() {
    let fitted = |limit, wanted| {
        let Files { process, control, origins, connections, .. } = Files::fit(limit, &SMALL, wanted);
        (u64::from(connections), origins, control, process)
    };
    assert_eq!(fitted(64, 100_000), (16, 8, 8, 32));
    assert_eq!(fitted(128, 100_000), (70, 10, 16, 32));
    assert_eq!(fitted(1024, 100_000), (840, 120, 32, 32));
    assert_eq!(fitted(20_000, 100_000), (17_444, 2492, 32, 32));
    assert_eq!(fitted(1 << 20, 100_000), (100_000, 948_512, 32, 32));
    // What clients do not take is there for origins.
    assert_eq!(fitted(128, 20), (20, 60, 16, 32));
}

#[test]
fn the_sum_is_said_as_it_is() {
    let files = Files::fit(128, &SMALL, 1000);
    assert_eq!(
        files.to_string(),
        "128 = 70 clients + 10 for origins + 16 for the admin API and probes + 32 of the process"
    );
}

#[test]
fn a_process_that_may_open_next_to_nothing_still_serves_one_client() {
    for limit in [0, 1, 16, 32, 40] {
        let files = Files::fit(limit, &SMALL, 1000);
        assert!((1..=2).contains(&files.connections), "{limit}: {files}");
    }
}

/// Forty files and eight workers: the first client gets in, and its origin has a file.
#[test]
fn a_limit_that_the_process_could_use_up_leaves_clients_their_origins() {
    for (limit, workers) in [(40, 2), (48, 4), (60, 4), (90, 8), (100, 8), (1024, 130)] {
        let standing = Standing { workers, addresses: 1, probes: 0 };
        let files = Files::fit(limit, &standing, 1000);
        assert_eq!((files.connections, files.origins), (2, 2), "{files}");
        let admission = Admission::new(&Limits::default());
        admission.reconfigure(&Limits::default(), &files);
        assert!(admission.try_connection(|| 0), "{files}");
    }
}

#[test]
fn without_a_limit_the_config_decides() {
    let files = Files::unlimited(u32::MAX / 2);
    assert!(files.connections >= 1_000_000_000 && files.ceiling() > 2_000_000_000, "{files}");
    assert_eq!(Files::unlimited(7).connections, 7);
}

proptest! {
    #[test]
    fn the_parts_are_the_whole_and_each_has_one(standing in standing(), limit in 0..3_000_000_u64, wanted in 1..200_000_u32) {
        let files = Files::fit(limit, &standing, wanted);
        prop_assert!(files.connections >= 1 && files.connections <= wanted);
        let sum = files.process + files.control + files.origins + u64::from(files.connections);
        if files.traffic() > 1 {
            prop_assert_eq!(sum, limit);
            prop_assert!(files.origins >= 1, "{}", files);
            prop_assert!(files.origins * 9 >= u64::from(files.connections), "{}", files);
        }
        prop_assert!(u64::from(files.ceiling()) + files.control == limit);
        prop_assert!(limit < 8 || files.control >= 1, "{}", files);
    }

    #[test]
    fn more_files_never_mean_fewer_clients(standing in standing(), limit in 0..300_000_u64) {
        let [less, more] = [limit, limit + 1].map(|limit| Files::fit(limit, &standing, u32::MAX).connections);
        prop_assert!(less <= more);
    }

    #[test]
    fn the_limit_that_is_asked_for_is_enough_and_one_less_is_not(standing in standing(), wanted in 2..200_000_u32) {
        let needed = Files::needed(&standing, wanted);
        prop_assert!(Files::fit(needed, &standing, wanted).connections == wanted);
        prop_assert!(Files::fit(needed - 1, &standing, wanted).connections < wanted);
    }
}
