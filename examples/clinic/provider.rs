//! The fake payment provider, a stand-in for a real one: opens payment sessions, signs the events it sends.
//!
//! Try it: `curl -X POST localhost:8080/fakepay/PAYMENT_ID -H 'content-type: application/json' -d '{"outcome":"succeeded"}'`

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tower_keep::core::Timestamp;

use crate::db::Db;
use crate::fault::Fault;
use crate::hooks::Faults;
use crate::state::Count;

/// The provider as we see it: what it knows is in tables of its own.
#[derive(Debug)]
pub struct Provider {
    db: Db,
    faults: Arc<Faults>,
    pub session_create: Count,
    pub session_paid: Count,
    pub session_expire: Count,
    pub customer_create: Count,
    pub refund: Count,
}

/// One payment session at the provider.
#[derive(Clone, Debug)]
pub struct PaymentSession {
    pub id: String,
}

/// The provider does not answer.
#[derive(Clone, Copy, Debug)]
pub struct Away;

impl Provider {
    pub fn new(db: Db, faults: Arc<Faults>) -> Self {
        Self {
            db,
            faults,
            session_create: Count::default(),
            session_paid: Count::default(),
            session_expire: Count::default(),
            customer_create: Count::default(),
            refund: Count::default(),
        }
    }

    /// Opens a payment session. (A real one is a network call: no lock is held over it.)
    pub async fn open(&self) -> Result<PaymentSession, Fault> {
        self.faults.provider().await;
        if self.faults.payment.strikes() {
            return Err(Away.into());
        }
        let id = format!("pay_{}", uuid::Uuid::new_v4().simple());
        let sql = "insert into provider_session (payment_id, state) values ($1, 'open')";
        self.db.execute(sql, &[&id]).await?;
        self.session_create.add();
        Ok(PaymentSession { id })
    }

    /// Takes the money, once.
    pub async fn pay(&self, payment_id: &str) -> Result<(), Fault> {
        if self.end(payment_id, "paid").await? {
            self.session_paid.add();
        }
        Ok(())
    }

    /// Ends a payment session that nobody shall pay any more.
    pub async fn expire(&self, payment_id: &str) {
        if let Ok(true) = self.end(payment_id, "expired").await {
            self.session_expire.add();
        }
    }

    /// Ends an open session; says whether it was one.
    async fn end(&self, payment_id: &str, state: &str) -> Result<bool, Fault> {
        self.faults.provider().await;
        let sql = "update provider_session set state = $2 where payment_id = $1 and state = 'open'";
        Ok(self.db.execute(sql, &[payment_id, state]).await? > 0)
    }

    /// Gives the money back; asked again it does nothing.
    pub async fn refund(&self, payment_id: &str) -> Result<(), Away> {
        self.faults.provider().await;
        let sql = "insert into provider_refund (payment_id) values ($1) on conflict do nothing";
        if self.db.execute(sql, &[payment_id]).await? > 0 {
            self.refund.add();
        }
        Ok(())
    }

    /// Finds the customer of a user, and makes one where there is none.
    pub async fn customer(&self, user: &str) -> Result<String, Away> {
        self.faults.provider().await;
        let made = format!("cus_{}", uuid::Uuid::new_v4().simple());
        let sql =
            "insert into provider_customer (user_id, id) values ($1, $2) on conflict do nothing";
        if self.db.execute(sql, &[user, &made]).await? > 0 {
            self.customer_create.add();
            return Ok(made);
        }
        self.known_customer(user).await?.ok_or(Away)
    }

    /// Finds the customer of a user.
    pub async fn known_customer(&self, user: &str) -> Result<Option<String>, Away> {
        let sql = "select id from provider_customer where user_id = $1";
        Ok(self.db.text(sql, user).await?)
    }

    /// Payment sessions opened here, less those that were paid or ended here.
    pub fn sessions_open(&self) -> i64 {
        let [opened, paid, ended] = [
            &self.session_create,
            &self.session_paid,
            &self.session_expire,
        ]
        .map(Count::value);
        opened as i64 - paid as i64 - ended as i64
    }

    /// Says whether the provider answers.
    pub async fn ping(&self) {
        self.faults.provider().await;
    }
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the payment provider does not answer")
    }
}

impl std::error::Error for Away {}

impl From<Away> for Fault {
    fn from(_: Away) -> Self {
        Self::PAYMENT_PROVIDER
    }
}

/// Its tables are ours for want of a real one.
impl From<Fault> for Away {
    fn from(_: Fault) -> Self {
        Self
    }
}

/// What the provider tells us about a payment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub created: Timestamp,
    pub data: EventData,
}

/// The payment an event is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventData {
    pub payment_id: String,
}

/// The field that carries the signature.
pub const SIGNATURE: &str = "fake-signature";

/// Signs a body: HMAC-SHA256 over `<seconds>.<body>`.
pub fn sign(secret: &str, body: &[u8], now: Timestamp) -> String {
    let seconds = now.as_millis() / 1_000;
    format!(
        "t={seconds},v1={}",
        hex(&mac(secret, seconds, body).finalize().into_bytes())
    )
}

/// Says whether the body was signed by us, within five minutes of now.
pub fn is_signed(secret: &str, headers: &HeaderMap, body: &[u8], now: Timestamp) -> bool {
    let signature = headers.get(SIGNATURE).and_then(|value| value.to_str().ok());
    let Some((seconds, v1)) = signature.and_then(parts) else {
        return false;
    };
    let signed_at = Timestamp::from_millis(seconds.saturating_mul(1_000));
    let apart = if signed_at > now {
        signed_at.since(now)
    } else {
        now.since(signed_at)
    };
    // The clock has milliseconds, the signature whole seconds.
    apart < Duration::from_secs(301) && mac(secret, seconds, body).verify_slice(&v1).is_ok()
}

fn parts(signature: &str) -> Option<(u64, Vec<u8>)> {
    let (t, v1) = signature.split_once(',')?;
    Some((
        t.trim().strip_prefix("t=")?.parse().ok()?,
        unhex(v1.trim().strip_prefix("v1=")?)?,
    ))
}

fn mac(secret: &str, seconds: u64, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body);
    mac
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}
