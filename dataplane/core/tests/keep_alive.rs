//! Claims about `Keep-Alive` of responses: what an origin says is heeded to the letter, and nothing else is.
#![allow(clippy::unwrap_used, reason = "a test helper that fails is a test that fails")]

use dataplane_core::h1::keep_alive::{KeepAlive, MARGIN_MS};
use dataplane_core::h1::{Asked, FieldStorage, HeadLimits, HeadScan, parse_response};
use dataplane_core::request::Method;
use proptest::prelude::*;

const SILENT: u32 = u32::MAX;

fn bound<'v>(values: impl IntoIterator<Item = &'v str>) -> u32 {
    let mut said = KeepAlive::default();
    values.into_iter().for_each(|value| said.add(value.as_bytes()));
    said.idle_ms_max()
}

/// Whether a connection is kept behind this head, and for how long.
fn kept(head: &str) -> (bool, u32) {
    let mut storage = FieldStorage::new();
    let limits = HeadLimits::new(4096, 32);
    let asked = Asked { method: Method::Get, upgrade: false };
    let head = parse_response(head.as_bytes(), &mut HeadScan::default(), &mut storage, asked, &limits);
    let head = head.unwrap().unwrap();
    (head.keep_alive, head.idle_ms_max)
}

#[test]
fn an_origin_is_given_less_time_than_it_says() {
    for (value, ms) in [
        ("timeout=5", 5000 - MARGIN_MS),
        ("timeout=1", 1000 - MARGIN_MS),
        ("Timeout=5, Max=100", 5000 - MARGIN_MS),
        ("max=1,timeout=75", 75_000 - MARGIN_MS),
        ("max=100", SILENT),
        ("timeout=0", 0),
        ("timeout=5, max=0", 0),
        ("timeout=999999999", SILENT - MARGIN_MS),
        ("", SILENT),
    ] {
        assert_eq!(bound([value]), ms, "{value}");
    }
}

#[test]
fn of_two_words_the_shorter_counts() {
    assert_eq!(bound(["timeout=9, timeout=5"]), 5000 - MARGIN_MS);
    assert_eq!(bound(["timeout=5", "timeout=9"]), 5000 - MARGIN_MS);
    assert_eq!(bound(["max=7", "max=0"]), 0);
}

#[test]
fn what_is_no_number_is_nothing() {
    for value in [
        "timeout",
        "timeout=",
        "timeout=-1",
        "timeout=+5",
        "timeout=5s",
        "timeout=0x5",
        "timeout= 5",
        "timeout =5",
        "timeout=5.5",
        "timeout=\"5\"",
        "timeout=5;max=0",
        "timeout==5",
        "timeouts=5",
        "5",
        "=5",
        "timeout=1000000000",
        "timeout=\u{665}",
        "max",
        "max=-0",
    ] {
        assert_eq!(bound([value]), SILENT, "{value}");
    }
    assert_eq!(bound(["garbage, timeout=x, ,timeout=5"]), 5000 - MARGIN_MS, "what is understood counts");
}

#[test]
fn responses_of_both_versions_say_how_long_they_are_kept() {
    let length = "Content-Length: 0\r\n";
    assert_eq!(kept(&format!("HTTP/1.1 200 OK\r\n{length}\r\n")), (true, SILENT));
    let said = "Keep-Alive: timeout=5\r\n";
    assert_eq!(kept(&format!("HTTP/1.1 200 OK\r\n{said}{length}\r\n")), (true, 4500));
    assert_eq!(
        kept(&format!("HTTP/1.0 200 OK\r\n{said}Connection: keep-alive\r\n{length}\r\n")),
        (true, 4500)
    );
    assert!(
        !kept(&format!("HTTP/1.0 200 OK\r\n{said}{length}\r\n")).0,
        "HTTP/1.0 has to say Connection: keep-alive"
    );
    assert!(!kept(&format!("HTTP/1.1 200 OK\r\n{said}Connection: close\r\n{length}\r\n")).0);
    for last in ["timeout=0", "max=0"] {
        assert!(!kept(&format!("HTTP/1.1 200 OK\r\nKeep-Alive: {last}\r\n{length}\r\n")).0, "{last}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_and_never_make_it_longer(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4), seconds in 0..100_u32) {
        let mut said = KeepAlive::default();
        said.add(format!("timeout={seconds}").as_bytes());
        let most = said.idle_ms_max();
        for value in values {
            said.add(&value);
            prop_assert!(said.idle_ms_max() <= most);
        }
    }

    #[test]
    fn every_number_of_seconds_is_understood_wherever_it_stands(seconds in 0..1_000_000_u32, before in "[a-z=, ]{0,10}", after in "[a-z=, ]{0,10}") {
        let expected = seconds.saturating_mul(1000).saturating_sub(MARGIN_MS);
        let value = format!("{before},TIMEOUT={seconds},{after}");
        prop_assert_eq!(bound([value.as_str()]), expected);
    }
}
