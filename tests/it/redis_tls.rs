//! Redis by TLS: whom a handle trusts, what it says of those it does not, and that the link is one like any other.

mod cluster;
mod link;
mod trust;

use std::error::Error;
use std::time::{Duration, Instant};

use tower_keep::backend::redis::{RedisStore, RedisStoreBuilder};
use tower_keep::core::{StoreError, StoreErrorKind};

use crate::support::Authority;

/// A handle that waits until a busy machine has done its sums.
fn patient(url: &str) -> RedisStoreBuilder {
    RedisStore::builder(url).timeout(Duration::from_secs(10))
}

/// A patient handle that trusts this authority only.
async fn trusting(authority: &Authority, url: &str) -> RedisStore {
    let builder = patient(url).root_certificates(authority.root());
    builder.open().await.unwrap()
}

/// Asks until the server answers: an attempt to connect has a second, which a busy machine may need for others.
async fn until_it_answers(store: &RedisStore) {
    let started = Instant::now();
    while let Err(error) = store.ping().await {
        let waited = started.elapsed();
        assert!(waited < Duration::from_secs(30), "{}", whole(&error));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks until the refusal is one of these words (a connection that is not even there in time says less), and checks
/// that it is none of the server's answers.
async fn until_refused_for(store: &RedisStore, words: &[&str]) -> StoreError {
    let started = Instant::now();
    loop {
        let error = store.ping().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        let said = whole(&error);
        if words.iter().any(|word| said.contains(word)) {
            return error;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{said}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An error with everything behind it.
fn whole(error: &dyn Error) -> String {
    let mut said = format!("{error} / {error:?}");
    let mut behind = error.source();
    while let Some(error) = behind {
        said.push_str(&format!(" / {error}"));
        behind = error.source();
    }
    said
}
