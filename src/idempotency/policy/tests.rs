//! Tests of the decisions.

use http::HeaderValue;

use super::*;

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap()
}

/// The table of the specification, written out: policy, then what it keeps.
#[test]
fn every_status_gets_the_directive_of_the_table() {
    let never = [401, 403, 407, 408, 421, 423, 425, 429];
    let client =
        |code: u16, later: bool| (400..500).contains(&code) && !never.contains(&code) && !later;
    for code in 100..=999 {
        for later in [false, true] {
            let keeps = [
                (
                    StatusPolicy::default(),
                    (200..400).contains(&code) || client(code, later),
                ),
                (
                    StatusPolicy::ietf(),
                    (200..400).contains(&code) || client(code, later) || (500..600).contains(&code),
                ),
                (
                    StatusPolicy::stripe(),
                    (200..600).contains(&code) && ![400, 401, 403, 409, 425, 429].contains(&code),
                ),
                (
                    StatusPolicy::iceberg(),
                    [200, 201, 204].contains(&code) || client(code, later),
                ),
                (StatusPolicy::success_only(), (200..300).contains(&code)),
            ];
            for (policy, kept) in keeps {
                let expected = match kept {
                    _ if code < 200 => Directive::NoStore,
                    true => Directive::Store,
                    false => Directive::Release,
                };
                assert_eq!(
                    policy.decide(status(code), later),
                    expected,
                    "{code} {later} {policy:?}"
                );
            }
        }
    }
}

#[test]
fn a_status_of_its_own_beats_the_policy_and_the_last_one_wins() {
    let policy = StatusPolicy::default()
        .on(409, Directive::NoStore)
        .on(409, Directive::StoreFor(Duration::from_secs(10)));
    let expected = Directive::StoreFor(Duration::from_secs(10));
    assert_eq!(policy.decide(status(409), true), expected);
    let policy = StatusPolicy::by(|_| Directive::Unknown);
    assert_eq!(policy.decide(status(200), false), Directive::Unknown);
}

#[test]
fn the_wait_is_what_is_left_of_an_average_run_within_1_and_30_seconds() {
    let after = |mean: u64, elapsed: u64| {
        retry_after(Duration::from_millis(mean), Duration::from_millis(elapsed))
    };
    assert_eq!(
        (after(1_000, 0), after(1_000, 5_000), after(900, 0)),
        (1, 1, 1)
    );
    assert_eq!(
        (after(4_500, 1_000), after(4_001, 1_000), after(600_000, 0)),
        (4, 4, 30)
    );
}

#[test]
fn an_average_moves_by_an_eighth() {
    assert_eq!(ewma(1_000_000, 1_000_000), 1_000_000);
    assert_eq!(ewma(1_000_000, 9_000_000), 2_000_000);
    assert_eq!((0..200).fold(1_000_000, |mean, _| ewma(mean, 0)) / 8, 0);
}

#[test]
fn streams_are_known_by_their_type() {
    let is_stream = |content_type: &'static str| {
        let mut fields = HeaderMap::new();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        streamed(StatusCode::OK, &fields).is_some()
    };
    assert!(is_stream("text/Event-Stream; charset=utf-8"));
    assert!(is_stream("multipart/x-mixed-replace;boundary=x"));
    assert!(is_stream("application/grpc") && is_stream("application/grpc-web+proto"));
    assert!(!is_stream("application/json") && !is_stream("text/event-streams"));
    assert!(streamed(StatusCode::SWITCHING_PROTOCOLS, &HeaderMap::new()).is_some());
}
