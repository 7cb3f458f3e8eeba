//! Events and their signature: HMAC-SHA256 over the time and the body, compared in constant time, five minutes old at most.
//!
//! Try it: `curl -i localhost:8080/api/webhooks/payments -H 'content-type: application/json' -d '{}'`
//!
//! Proof: `unsigned_events_do_nothing`

use std::time::Duration;

use axum::http::HeaderMap;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tower_keep::core::Timestamp;

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
