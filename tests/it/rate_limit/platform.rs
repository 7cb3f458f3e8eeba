//! The limits of a whole platform, row by row: each policy admits what its row says, and says when to come back.

use tower_keep::core::StoreFailure;
use tower_keep::rate_limit::RateLimitRejection;
use tower_keep::{HOUR, SECOND};

use super::*;

/// By whom a policy counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    User,
    Ip,
    Global,
}

use By::{Global, Ip, User};
use StoreFailure::{Closed, Local};

type Row = (
    &'static str,
    &'static [(&'static str, By, u32, u64)],
    StoreFailure,
);

const ROWS: [Row; 11] = [
    (
        "identity",
        &[
            ("user", User, 3, 3_600),
            ("ip", Ip, 10, 3_600),
            ("global", Global, 500, 300),
        ],
        Local,
    ),
    (
        "payment",
        &[
            ("user", User, 5, 900),
            ("user-daily", User, 20, 86_400),
            ("ip", Ip, 20, 900),
            ("global", Global, 1_000, 60),
        ],
        Closed,
    ),
    (
        "transfer",
        &[
            ("admin", User, 50, 3_600),
            ("admin-daily", User, 200, 86_400),
            ("global", Global, 500, 600),
        ],
        Closed,
    ),
    ("force", &[("admin", User, 10, 86_400)], Closed),
    ("roles", &[("admin", User, 5, 3_600)], Local),
    ("experts", &[("admin", User, 20, 3_600)], Local),
    ("api-admin", &[("admin", User, 100, 600)], Local),
    ("api-user", &[("user", User, 30, 300)], Local),
    ("login", &[("ip", Ip, 10, 900)], Local),
    (
        "sample",
        &[
            ("user", User, 100, 3_600),
            ("ip", Ip, 200, 3_600),
            ("global", Global, 10_000, 300),
        ],
        Local,
    ),
    ("template", &[("user", User, 100, 3_600)], Local),
];

fn layer(store: impl RateLimitStore, (group, policies, mode): Row) -> RateLimitLayer {
    let layer = RateLimitLayer::new(store)
        .group(group)
        .on_store_failure(mode);
    policies
        .iter()
        .fold(layer, |layer, (name, by, limit, seconds)| {
            let partition = match by {
                User => Partition::principal(),
                Ip => Partition::client_ip(),
                Global => Partition::global(),
            };
            let quota = Quota::new(*limit, Duration::from_secs(*seconds));
            layer.policy(Policy::new(name, quota, partition))
        })
}

/// A request that only policies by `by`, and by all, meet again.
fn meeting(by: By, turn: u32) -> Request<()> {
    let fresh = |kind: By| if by == kind { 0 } else { turn + 1 };
    let [_, high, middle, low] = fresh(Ip).to_be_bytes();
    request(
        &format!("u{}", fresh(User)),
        &format!("10.{high}.{middle}.{low}"),
    )
}

fn refused_by(answer: &Answer) -> Option<(String, Duration)> {
    let why = answer.extensions.get::<RateLimitRejection>()?;
    let wait: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    Some((why.code().to_owned(), Duration::from_secs(wait)))
}

#[tokio::test]
async fn every_row_admits_its_numbers_and_not_one_more() {
    for row in ROWS {
        for (name, by, limit, seconds) in row.1 {
            let clock = clock();
            let app = App::new(layer(memory(&clock), row));
            let (window, mut waited, mut admitted) =
                (Duration::from_secs(*seconds), Duration::ZERO, 0);
            let wait = loop {
                let answer = app.send(meeting(*by, admitted)).await;
                let Some((code, wait)) = refused_by(&answer) else {
                    admitted += 1;
                    continue;
                };
                if code == *name {
                    break wait;
                }
                // A shorter window of the same key: it opens before ours does.
                waited += wait;
                assert!(waited < window, "{} {name}: {code} is in the way", row.0);
                clock.advance(wait);
            };
            assert_eq!(admitted, *limit, "{} {name}", row.0);
            assert_eq!(app.calls(), *limit as usize);
            // Sub-buckets may count one of 64 parts too long.
            assert!(
                wait <= window + window / 64 + SECOND,
                "{} {name}: {wait:?}",
                row.0
            );
            clock.advance(wait - SECOND);
            let early = app.send(meeting(*by, admitted)).await;
            let still = refused_by(&early).map(|(_, still)| still);
            assert!(
                still.is_none_or(|still| still == SECOND),
                "{} {name}: {still:?}",
                row.0
            );
            clock.advance(SECOND);
            let after = app.send(meeting(*by, admitted)).await;
            assert_eq!(refused_by(&after), None, "{} {name}", row.0);
        }
    }
}

#[tokio::test]
async fn every_row_has_its_failure_mode() {
    for row in ROWS {
        let answer = App::new(layer(super::faults::Broken, row))
            .get("u1", "192.0.2.1")
            .await;
        let expected = match row.2 {
            Closed => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        };
        assert_eq!(answer.status, expected, "{}", row.0);
    }
}

#[test]
fn the_template_is_what_a_quota_is_unless_said_otherwise() {
    assert_eq!(Quota::default(), Quota::new(100, HOUR));
}
