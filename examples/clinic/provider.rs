//! The fake payment provider, a stand-in for a real one: opens payment sessions, signs the events it sends.
//!
//! Try it: `curl -X POST localhost:8080/fakepay/PAYMENT_ID -H 'content-type: application/json' -d '{"outcome":"succeeded"}'`

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::HeaderMap;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tower_keep::core::Timestamp;

use crate::state::Count;

/// What the provider was asked so far.
#[derive(Debug, Default)]
pub struct Provider {
    pub session_create: Count,
    pub session_expire: Count,
    pub refund: Count,
    pub notification_send: Count,
    /// How many of the next deliveries of the mailer shall fail.
    pub failing_deliveries: AtomicU64,
}

/// One payment session at the provider.
#[derive(Clone, Debug)]
pub struct PaymentSession {
    pub id: String,
}

impl Provider {
    /// Opens a payment session. (A real one is a network call: no lock is held over it.)
    pub async fn open(&self) -> PaymentSession {
        self.session_create.add();
        PaymentSession {
            id: format!("pay_{}", uuid::Uuid::new_v4().simple()),
        }
    }

    /// Ends a payment session that nobody shall pay any more.
    pub async fn expire(&self, _payment_id: &str) {
        self.session_expire.add();
    }

    /// Says whether this delivery is one of those that shall fail.
    pub fn mailer_fails(&self) -> bool {
        let less = |left: u64| left.checked_sub(1);
        self.failing_deliveries
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }

    /// Gives the money back.
    pub async fn refund(&self, _payment_id: &str) {
        self.refund.add();
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
