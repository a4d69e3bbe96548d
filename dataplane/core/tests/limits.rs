//! Claims about limits: exact at the edge, over all workers, and over a change of the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dataplane_core::files::{Files, Standing};
use dataplane_core::limit::{Admission, ConnectionPermit, Limit};
use proto::config::Limits;

fn limits(connections: u32, requests: Option<u32>) -> Limits {
    let second = Duration::from_secs(1);
    Limits {
        connections,
        requests,
        worker_memory_bytes: 1,
        request_head_bytes: 1,
        request_header_fields: 1,
        request_head_timeout: second,
        request_body_timeout: second,
        keep_alive_timeout: second,
        send_timeout: second,
        drain_timeout: second,
    }
}

#[test]
fn admits_up_to_the_limit_and_not_one_more() {
    let admission = Admission::new(&limits(2, Some(1)));
    assert!(admission.try_connection(|| 0) && admission.try_connection(|| 0));
    assert!(!admission.try_connection(|| 0));
    assert_eq!(admission.connections(), 2);
    admission.release_connection();
    assert!(admission.try_connection(|| 0));

    let permit = admission.try_request().unwrap();
    assert_eq!(admission.try_request(), None);
    admission.release_request(permit);
    assert!(admission.try_request().is_some());
}

#[test]
fn without_a_limit_of_requests_none_is_turned_away() {
    let admission = Admission::new(&limits(1, None));
    assert!((0..10_000).all(|_| admission.try_request().is_some()));
}

#[test]
fn a_lower_limit_cuts_nothing_and_lets_no_one_in_until_there_is_room() {
    let admission = Admission::new(&limits(3, None));
    assert!((0..3).all(|_| admission.try_connection(|| 0)));
    admission.reconfigure(&limits(1, None), &Files::unlimited(1));
    for open in [3, 2, 1] {
        assert_eq!(admission.connections(), open);
        assert!(!admission.try_connection(|| 0), "{open} are open");
        admission.release_connection();
    }
    assert!(admission.try_connection(|| 0));
}

#[test]
fn as_many_silent_clients_get_in_as_fit_and_half_as_many_busy_ones() {
    let standing = Standing { workers: 1, addresses: 1, probes: 0 };
    let files = Files::fit(128, &standing, 1000);
    let admission = Admission::new(&limits(1000, None));
    admission.reconfigure(&limits(1000, None), &files);
    assert_eq!(admission.ceiling(), 112);
    let mut silent = 0;
    while admission.try_connection(|| 0) {
        silent += 1;
    }
    assert_eq!(silent, files.connections);
    (0..silent).for_each(|_| admission.release_connection());
    let mut busy = 0;
    while admission.try_connection(|| busy) {
        busy += 1;
    }
    assert_eq!(busy, u64::from(files.traffic()) / 2, "each of them has a file for its origin");
    assert_eq!(u64::from(admission.connections()), busy, "who was turned away holds no place");
}

#[test]
fn who_need_not_be_counted_is_not() {
    let admission = Admission::new(&limits(1000, None));
    assert!((0..1000).all(|_| admission.try_connection(|| panic!("there are files for everybody"))));
}

#[test]
fn a_place_that_is_not_used_is_given_back() {
    let admission = Arc::new(Admission::new(&limits(1, None)));
    assert!(admission.try_connection(|| 0));
    drop(ConnectionPermit::taken(Arc::clone(&admission)));
    assert!(admission.try_connection(|| 0));
    ConnectionPermit::taken(Arc::clone(&admission)).begin();
    assert!(!admission.try_connection(|| 0), "its connection has it now");
}

#[test]
fn exchanges_admitted_before_there_was_a_limit_do_not_count_against_it() {
    let admission = Admission::new(&limits(1, None));
    let before = admission.try_request().unwrap();
    admission.reconfigure(&limits(1, Some(1)), &Files::unlimited(1));
    let counted = admission.try_request().unwrap();
    admission.release_request(before);
    assert_eq!(admission.try_request(), None, "the uncounted one gave nothing back");
    admission.release_request(counted);
    assert!(admission.try_request().is_some());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "several workers at once are what is tested")]
fn holds_between_workers() {
    let limit = Arc::new(Limit::new(5));
    let (inside, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let worker = || {
        let (limit, inside, most) = (Arc::clone(&limit), Arc::clone(&inside), Arc::clone(&most));
        std::thread::spawn(move || {
            let mut admitted = 0_u32;
            for _ in 0..20_000 {
                if limit.try_acquire() {
                    let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    admitted += 1;
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    limit.release();
                }
            }
            admitted
        })
    };
    let workers: Vec<_> = std::iter::repeat_with(worker).take(8).collect();
    let admitted: u32 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    assert!(admitted > 0);
    assert!(most.load(Ordering::SeqCst) <= 5);
    assert_eq!(limit.in_use(), 0, "what was taken was given back");
}
