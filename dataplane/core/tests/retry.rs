//! A request is never doubled: the retry decision over every combination of what it looks at.

use dataplane_core::request::Method;
use dataplane_core::retry::{Body, GiveUp, Phase, Retry, RetryState, decide};

/// Every state: phase × body × idempotent × allowed by the route × tries left or not.
fn all_states() -> impl Iterator<Item = RetryState> {
    let flags = [false, true];
    Phase::ALL.into_iter().flat_map(move |phase| {
        Body::ALL.into_iter().flat_map(move |body| {
            flags.into_iter().flat_map(move |is_idempotent| {
                flags.into_iter().flat_map(move |unsafe_methods| {
                    [1, 2, 3].into_iter().map(move |attempt| RetryState {
                        attempt,
                        attempts_max: 2,
                        phase,
                        is_idempotent,
                        body,
                        unsafe_methods,
                    })
                })
            })
        })
    })
}

/// phase, may the request be repeated, are tries left: and what follows, the body being there.
const TABLE: [(Phase, bool, bool, Retry); 20] = [
    (Phase::Connecting, false, false, Retry::GiveUp(GiveUp::AttemptsSpent)),
    (Phase::Connecting, false, true, Retry::OtherEndpoint),
    (Phase::Connecting, true, false, Retry::GiveUp(GiveUp::AttemptsSpent)),
    (Phase::Connecting, true, true, Retry::OtherEndpoint),
    (Phase::ReusedBeforeByte, false, false, Retry::SameOnFreshConnection),
    (Phase::ReusedBeforeByte, false, true, Retry::SameOnFreshConnection),
    (Phase::ReusedBeforeByte, true, false, Retry::SameOnFreshConnection),
    (Phase::ReusedBeforeByte, true, true, Retry::SameOnFreshConnection),
    (Phase::ReusedAfterByte, false, false, Retry::GiveUp(GiveUp::NotIdempotent)),
    (Phase::ReusedAfterByte, false, true, Retry::GiveUp(GiveUp::NotIdempotent)),
    (Phase::ReusedAfterByte, true, false, Retry::SameOnFreshConnection),
    (Phase::ReusedAfterByte, true, true, Retry::SameOnFreshConnection),
    (Phase::SentBeforeResponse, false, false, Retry::GiveUp(GiveUp::NotIdempotent)),
    (Phase::SentBeforeResponse, false, true, Retry::GiveUp(GiveUp::NotIdempotent)),
    (Phase::SentBeforeResponse, true, false, Retry::GiveUp(GiveUp::AttemptsSpent)),
    (Phase::SentBeforeResponse, true, true, Retry::OtherEndpoint),
    (Phase::ResponseStarted, false, false, Retry::GiveUp(GiveUp::ResponseStarted)),
    (Phase::ResponseStarted, false, true, Retry::GiveUp(GiveUp::ResponseStarted)),
    (Phase::ResponseStarted, true, false, Retry::GiveUp(GiveUp::ResponseStarted)),
    (Phase::ResponseStarted, true, true, Retry::GiveUp(GiveUp::ResponseStarted)),
];

#[test]
fn decides_every_combination_as_the_table_says() {
    let mut checked = 0;
    for state in all_states() {
        let may_repeat = state.is_idempotent || state.unsafe_methods;
        let tries_left = state.attempt < state.attempts_max;
        let row = |(phase, repeat, left, _): &&(Phase, bool, bool, Retry)| {
            (*phase, *repeat, *left) == (state.phase, may_repeat, tries_left)
        };
        let (.., with_body) = *TABLE.iter().find(row).unwrap();
        let expected = match (state.phase, state.body) {
            (Phase::ResponseStarted, _) | (_, Body::None | Body::Kept) => with_body,
            (_, Body::Lost) => Retry::GiveUp(GiveUp::BodyLost),
        };
        assert_eq!(decide(&state), expected, "{state:?}");
        checked += 1;
    }
    assert_eq!(checked, 5 * 3 * 2 * 2 * 3);
}

#[test]
fn never_sends_a_post_again_once_a_byte_of_it_is_out() {
    for state in all_states().filter(|state| !state.is_idempotent && !state.unsafe_methods) {
        let is_clean = matches!(state.phase, Phase::Connecting | Phase::ReusedBeforeByte);
        assert!(is_clean || matches!(decide(&state), Retry::GiveUp(_)), "{state:?}");
    }
}

#[test]
fn a_route_that_allows_one_try_still_survives_a_stale_pooled_connection() {
    let state = RetryState {
        attempt: 1,
        attempts_max: 1,
        phase: Phase::ReusedBeforeByte,
        is_idempotent: false,
        body: Body::Kept,
        unsafe_methods: false,
    };
    assert_eq!(decide(&state), Retry::SameOnFreshConnection);
    assert_eq!(
        decide(&RetryState { phase: Phase::Connecting, ..state }),
        Retry::GiveUp(GiveUp::AttemptsSpent)
    );
}

#[test]
fn knows_the_idempotent_methods_of_the_rfc() {
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
        assert!(Method::from_token(method).is_idempotent(), "{method}");
    }
    for method in ["POST", "PATCH", "CONNECT", "get", "BREW", ""] {
        assert!(!Method::from_token(method).is_idempotent(), "{method}");
    }
}
