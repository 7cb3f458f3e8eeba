//! Asks sentinels where the primary is, at each connection: after a failover the next one leads to its successor.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use redis::RedisError;

use super::address::{Endpoint, SentinelsAddress};
use super::asking::first_answer;
use super::command::Command;
use super::error::away;
use super::reply::Reply;
use super::server::connect;
use super::wire::Wire;

/// Sentinels that watch over one primary.
pub(super) struct Sentinels {
    address: Arc<SentinelsAddress>,
    /// The one that led right last is asked first.
    first: AtomicUsize,
}

impl Sentinels {
    pub(super) fn new(address: SentinelsAddress) -> Self {
        Self {
            address: Arc::new(address),
            first: AtomicUsize::new(0),
        }
    }

    pub(super) fn database(&self) -> i64 {
        self.address.server.redis_settings().db()
    }

    /// Returns the address of the primary as the first sentinel that answers has it, and the number of that one.
    ///
    /// The next attempt begins with another: this one may be behind, and lead where no primary is any more. Where it
    /// led right, [`Sentinels::trust`] says so.
    pub(super) async fn primary(&self) -> Result<(Endpoint, usize), RedisError> {
        let count = self.address.sentinels.len();
        let first = self.first.fetch_add(1, Ordering::Relaxed) % count;
        let all = (0..count).map(|place| (first + place) % count);
        first_answer(all.map(|index| {
            let address = Arc::clone(&self.address);
            async move { Ok((ask(&address, index).await?, index)) }
        }))
        .await
    }

    /// Asks this one first from now on.
    pub(super) fn trust(&self, index: usize) {
        self.first.store(index, Ordering::Relaxed);
    }
}

async fn ask(address: &SentinelsAddress, index: usize) -> Result<Endpoint, RedisError> {
    let (connection, driver) = connect(&address.sentinels[index]).await?;
    let question = async move {
        let question = Command::new("SENTINEL").arg("get-master-addr-by-name");
        let question = question.arg(&address.name);
        connection.send(&question).await
    };
    let answer = tokio::select! {
        answer = question => answer?,
        () = driver => return Err(away("the sentinel hung up")),
    };
    let (host, port) = match answer {
        Reply::Nil => return Err(away("the sentinel does not know that name")),
        answer => place(answer).ok_or_else(|| away("the sentinel names no place"))?,
    };
    Ok(address.server.at(host, port))
}

/// A host and a port, both as text.
fn place(answer: Reply) -> Option<(String, u16)> {
    let mut parts = answer.array().ok()?.into_iter();
    let host = parts.next()?.bytes().ok()?;
    let port = parts.next()?.int().ok()?;
    Some((
        String::from_utf8(host.into()).ok()?,
        u16::try_from(port).ok()?,
    ))
}

/// Fails where the server is not (or no longer) a primary: sentinels may be behind, and a replica takes no write.
pub(super) async fn check_role(connection: &Wire) -> Result<(), RedisError> {
    match connection.send(&Command::new("ROLE")).await? {
        Reply::Array(fields) if matches!(fields.first(), Some(Reply::Bytes(role)) if role == "master") => {
            Ok(())
        }
        _ => Err(away("the server is not the primary")),
    }
}
