//! Payments and bookings as they are looked at outside a reservation's transaction.
//!
//! Try it: `curl -b jar localhost:8080/api/appointments`
//!
//! Proof: `no_module_reaches_into_anothers_tables`

use super::PaymentRecord;
use crate::db::Db;
use crate::fault::Fault;

impl Db {
    /// Finds the payment of a reservation.
    pub async fn reservation(&self, id: &str) -> Result<Option<PaymentRecord>, Fault> {
        let sql = "select body from clinic_payment where reservation_id = $1";
        let found = self.text(sql, id).await?;
        Ok(found.and_then(|body| serde_json::from_str(&body).ok()))
    }

    /// All bookings of an expert by start, confirmed or given back.
    pub async fn bookings_of_expert(&self, expert: &str) -> Result<Vec<PaymentRecord>, Fault> {
        let sql = "select body from clinic_payment where expert_id = $1 and booking_id is not null";
        Ok(by_start(self.texts(sql, expert).await?))
    }

    /// All bookings of a subject by start, confirmed or given back.
    pub async fn bookings_of_subject(&self, subject: &str) -> Result<Vec<PaymentRecord>, Fault> {
        let sql = "select body from clinic_payment where subject = $1 and booking_id is not null";
        Ok(by_start(self.texts(sql, subject).await?))
    }
}

fn by_start(rows: Vec<String>) -> Vec<PaymentRecord> {
    let parsed = rows.iter().map(|row| serde_json::from_str(row).ok());
    let mut bookings: Vec<PaymentRecord> = parsed.flatten().collect();
    bookings.sort_by_key(|booking| booking.start.as_millis());
    bookings
}
