//! Claims about counters, histograms and faults: what is counted can be added up, and every fault can be told.

use std::collections::HashSet;

use dataplane_core::error::{Blame, Fault, FaultKind};
use dataplane_core::h1::{ErrorBody, encode_error};
use dataplane_core::stats::{
    BOUNDS, Counter, EndpointStats, FINE_BOUNDS_NS, Gauge, Histogram, ListenerStats, RouteStats, StatusClass,
    WIDE_BOUNDS_NS, WorkerStats,
};
use proptest::prelude::*;
use proto::config::LogLevel;

#[test]
fn bounds_ascend_and_span_what_is_promised() {
    for bounds in [WIDE_BOUNDS_NS, FINE_BOUNDS_NS] {
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{bounds:?}");
    }
    assert_eq!((WIDE_BOUNDS_NS[0], WIDE_BOUNDS_NS[BOUNDS - 1]), (100_000, 300_000_000_000));
}

#[test]
fn a_bound_belongs_to_the_bucket_below_it() {
    let histogram = Histogram::wide();
    histogram.record(0);
    histogram.record(100_000);
    histogram.record(100_001);
    histogram.record(u64::MAX / 2);
    let counts = histogram.counts();
    assert_eq!((counts[0], counts[1], counts[BOUNDS]), (2, 1, 1));
    assert_eq!(histogram.count(), 4);
}

#[test]
fn a_gauge_does_not_fall_below_zero() {
    let gauge = Gauge::default();
    gauge.increment();
    gauge.subtract(5);
    assert_eq!(gauge.value(), 0);
    gauge.set(7);
    gauge.decrement();
    assert_eq!(gauge.value(), 6);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a reader beside the writer is what is tested")]
fn a_reader_sees_a_counter_grow_while_its_owner_adds() {
    let counter = std::sync::Arc::new(Counter::default());
    let owner = std::sync::Arc::clone(&counter);
    let writer = std::thread::spawn(move || (0..100_000).for_each(|_| owner.increment()));
    let mut last = 0;
    while last < 100_000 {
        let now = counter.value();
        assert!(now >= last, "{now} after {last}");
        last = now;
    }
    writer.join().unwrap();
}

#[test]
fn merges_what_each_worker_counted() {
    let workers = [RouteStats::default(), RouteStats::default()];
    for (at, stats) in workers.iter().enumerate() {
        stats.count_request(Some(200));
        stats.count_request(None);
        stats.count_fault(FaultKind::ClientGone);
        stats.in_flight.add(2);
        stats.retries.add(3);
        stats.bytes_in.add(10);
        stats.bytes_out.add(20);
        for histogram in [&stats.first_byte, &stats.chunk_gap, &stats.upstream_time, &stats.proxy_time] {
            histogram.record(1_000_000 + at as u64);
        }
    }
    let total = RouteStats::default();
    workers.iter().for_each(|stats| total.merge(stats));
    assert_eq!(total.requests[StatusClass::Success as usize].value(), 2);
    assert_eq!(total.requests[StatusClass::None as usize].value(), 2);
    assert_eq!(total.faults[FaultKind::ClientGone as usize].value(), 2);
    assert_eq!((total.in_flight.value(), total.retries.value()), (4, 6));
    assert_eq!((total.bytes_in.value(), total.bytes_out.value()), (20, 40));
    for histogram in [&total.first_byte, &total.chunk_gap, &total.upstream_time, &total.proxy_time] {
        assert_eq!((histogram.count(), histogram.sum_ns()), (2, 2_000_001));
    }
}

#[test]
fn sets_of_two_workers_share_no_cache_line() {
    assert_eq!(align_of::<WorkerStats>(), 64);
    assert_eq!(align_of::<RouteStats>(), 64);
    assert_eq!(align_of::<ListenerStats>(), 64);
    assert_eq!(align_of::<EndpointStats>(), 64);
}

#[test]
fn numbers_of_classes_and_kinds_are_their_places_in_all() {
    assert!(StatusClass::ALL.iter().enumerate().all(|(at, class)| *class as usize == at));
    assert!(FaultKind::ALL.iter().enumerate().all(|(at, kind)| *kind as usize == at));
    assert!(Blame::ALL.iter().enumerate().all(|(at, blame)| *blame as usize == at));
}

#[test]
fn classes_a_status_by_its_first_digit() {
    let classes: Vec<_> = [None, Some(101), Some(204), Some(304), Some(499), Some(500), Some(599)]
        .into_iter()
        .map(|status| StatusClass::of(status).as_str())
        .collect();
    assert_eq!(classes, ["none", "1xx", "2xx", "3xx", "4xx", "5xx", "5xx"]);
}

#[test]
fn tells_every_fault_in_words_of_its_own() {
    let labels: HashSet<_> = FaultKind::ALL.iter().map(|kind| kind.as_str()).collect();
    let messages: HashSet<_> = FaultKind::ALL.iter().map(|kind| kind.message()).collect();
    assert_eq!((labels.len(), messages.len()), (FaultKind::ALL.len(), FaultKind::ALL.len()));
    assert!(labels.iter().all(|label| label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_'))));
}

#[test]
fn blames_the_client_for_4xx_only_and_others_for_5xx() {
    for kind in FaultKind::ALL {
        let Some(status) = kind.status() else { continue };
        let asked_too_much = matches!(
            kind,
            FaultKind::UnsupportedMethod
                | FaultKind::UnsupportedTransferCoding
                | FaultKind::UnsupportedVersion
        );
        let is_4xx = (400..500).contains(&status);
        assert_eq!(is_4xx || asked_too_much, kind.blame() == Blame::Client, "{kind}: {status}");
        assert!(is_4xx || (500..600).contains(&status), "{kind}: {status}");
    }
}

#[test]
fn says_when_to_come_back_where_waiting_helps() {
    for kind in FaultKind::ALL {
        let helps = matches!(kind.status(), Some(429 | 503));
        assert_eq!(kind.retry_after_s().is_some(), helps, "{kind}");
    }
    assert!(FaultKind::Overloaded.retry_after_s().is_some());
}

#[test]
fn retries_only_what_another_endpoint_could_do_better() {
    for kind in FaultKind::ALL {
        let fault = Fault::from(kind);
        assert!(!fault.retry || fault.blame == Blame::Upstream, "{fault}");
    }
    assert!(Fault::from(FaultKind::ConnectRefused).retry);
    assert!(!Fault::from(FaultKind::UpstreamTruncated).retry);
}

#[test]
fn what_clients_can_cause_at_any_rate_is_not_loud() {
    let quiet = FaultKind::ALL.into_iter().filter(|kind| kind.blame() == Blame::Client);
    quiet.for_each(|kind| assert_eq!(kind.log_level(), LogLevel::Debug, "{kind}"));
    assert_eq!(FaultKind::Internal.log_level(), LogLevel::Error);
}

#[test]
fn answers_in_the_shape_that_sdks_know() {
    let kind = FaultKind::NoEndpoint;
    let body = ErrorBody {
        message: kind.message(),
        kind: kind.error_type(),
        code: kind.as_str(),
        request_id: "req-\"1\"\\\n\u{e9}",
    };
    let mut room = [0; 1024];
    let len = encode_error(&mut room, 503, &body, true, None, false).unwrap();
    let answer = str::from_utf8(&room[..len]).unwrap();
    assert_eq!(
        answer.split_once("\r\n\r\n").unwrap().1,
        "{\"error\":{\"message\":\"No server is available for this route; try again shortly.\",\
         \"type\":\"upstream_error\",\"code\":\"no_endpoint\",\
         \"request_id\":\"req-\\\"1\\\"\\\\\\u000a\u{e9}\"}}\n"
    );
    assert_eq!(FaultKind::MalformedRequest.error_type(), "invalid_request_error");
    assert_eq!(FaultKind::TooManyRequests.error_type(), "rate_limit_error");
    assert_eq!(FaultKind::Overloaded.error_type(), "server_error");
    assert_eq!(FaultKind::ClientGone.log_status(), 499);
}

proptest! {
    /// Each duration lies in the first bucket whose bound it does not exceed, in all and in merged histograms.
    #[test]
    fn counts_every_duration_in_its_bucket(
        durations in prop::collection::vec(prop_oneof![0_u64..1_000_000, 0_u64..400_000_000_000], 0..100),
        split in 0_usize..100,
    ) {
        for (make, bounds) in [(Histogram::wide as fn() -> Histogram, WIDE_BOUNDS_NS), (Histogram::fine, FINE_BOUNDS_NS)] {
            let (one, other) = (make(), make());
            for (at, duration) in durations.iter().enumerate() {
                if at < split { one.record(*duration) } else { other.record(*duration) }
            }
            one.merge(&other);
            let mut below = 0;
            for (bound, count) in bounds.iter().zip(one.counts()) {
                below += count;
                let expected = durations.iter().filter(|duration| *duration <= bound).count() as u64;
                prop_assert_eq!(below, expected, "up to {} ns", bound);
            }
            prop_assert_eq!(one.count(), durations.len() as u64);
            prop_assert_eq!(one.sum_ns(), durations.iter().sum::<u64>());
        }
    }
}
