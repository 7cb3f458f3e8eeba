//! The fake payment provider, a stand-in for a real one: opens payment sessions, signs the events it sends.
//!
//! Try it: `curl -X POST localhost:8080/fakepay/PAYMENT_ID -H 'content-type: application/json' -d '{"outcome":"succeeded"}'`
//!
//! Proof: `pay`

mod away;
mod events;

use std::sync::Arc;
use std::time::Duration;

pub use self::away::Away;
pub use self::events::{Event, EventData, SIGNATURE, is_signed, sign};
use crate::db::Db;
use crate::fault::Fault;
use crate::hooks::Faults;
use crate::state::Count;

/// The provider as we see it: what it knows is in tables of its own.
#[derive(Debug)]
pub struct Provider {
    db: Db,
    faults: Arc<Faults>,
    /// For how long an answer is waited for.
    patience: Duration,
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

impl Provider {
    pub fn new(db: Db, faults: Arc<Faults>, patience: Duration) -> Self {
        Self {
            db,
            faults,
            patience,
            session_create: Count::default(),
            session_paid: Count::default(),
            session_expire: Count::default(),
            customer_create: Count::default(),
            refund: Count::default(),
        }
    }

    /// The way there and back, which a real one has in each call: whoever says nothing for too long is away.
    async fn asked(&self) -> Result<(), Away> {
        let answer = tokio::time::timeout(self.patience, self.faults.provider());
        answer.await.map_err(|_| Away)
    }

    /// Opens a payment session. (A real one is a network call: no lock is held over it.)
    pub async fn open(&self) -> Result<PaymentSession, Fault> {
        self.asked().await?;
        if self.faults.payment.strikes() {
            return Err(Away.into());
        }
        let id = format!("pay_{}", uuid::Uuid::new_v4().simple());
        let sql = "insert into provider_session (payment_id, state) values ($1, 'open')";
        self.db.execute(sql, &[&id]).await?;
        self.session_create.add();
        Ok(PaymentSession { id })
    }

    /// Takes the money, once, and notes with the same stroke what there is to tell of it. Says whether it is taken: a
    /// session that has ended takes none.
    pub async fn pay(&self, event: &Event) -> Result<bool, Fault> {
        self.asked().await?;
        let body = serde_json::to_string(event).unwrap_or_default();
        let sql = "update provider_session set state = 'paid', untold = $2 \
                   where payment_id = $1 and state = 'open'";
        if self
            .db
            .execute(sql, &[&event.data.payment_id, &body])
            .await?
            > 0
        {
            self.session_paid.add();
            return Ok(true);
        }
        let sql = "select state from provider_session where payment_id = $1";
        let state = self.db.text(sql, &event.data.payment_id).await?;
        Ok(state.as_deref() == Some("paid"))
    }

    /// Somebody has taken the event: who knows of the money needs no other event of it.
    pub async fn told(&self, event: &Event) {
        if event.kind != "succeeded" {
            return;
        }
        let sql = "update provider_session set untold = null where payment_id = $1";
        // Where this is lost the event is told once more, which does nothing.
        drop(self.db.execute(sql, &[&event.data.payment_id]).await);
    }

    /// What was paid, and nobody has taken the event of it: some of it, and where the rest begins.
    pub async fn untold(&self, from: &str) -> Result<(Vec<Event>, Option<String>), Fault> {
        let sql = "select untold from provider_session where untold > $1 order by untold limit 100";
        let rows = self.db.texts(sql, from).await?;
        let parsed = rows.iter().map(|row| serde_json::from_str(row).ok());
        Ok((parsed.flatten().collect(), rows.last().cloned()))
    }

    /// Ends a payment session that nobody shall pay any more.
    pub async fn expire(&self, payment_id: &str) {
        if self.asked().await.is_err() {
            return;
        }
        let sql = "update provider_session set state = 'expired' where payment_id = $1 and state = 'open'";
        if let Ok(1..) = self.db.execute(sql, &[payment_id]).await {
            self.session_expire.add();
        }
    }

    /// Gives the money back; asked again it does nothing.
    pub async fn refund(&self, payment_id: &str) -> Result<(), Away> {
        self.asked().await?;
        let sql = "insert into provider_refund (payment_id) values ($1) on conflict do nothing";
        if self.db.execute(sql, &[payment_id]).await? > 0 {
            self.refund.add();
        }
        Ok(())
    }

    /// Finds the customer of a user, and makes one where there is none.
    pub async fn customer(&self, user: &str) -> Result<String, Away> {
        self.asked().await?;
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
    pub async fn ping(&self) -> Result<(), Away> {
        self.asked().await
    }
}
