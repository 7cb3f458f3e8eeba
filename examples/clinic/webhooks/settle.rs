//! What an event does to the hold and its payment, in the transaction that also claims the event.
//!
//! Try it: `curl -X POST localhost:8080/fakepay/PAYMENT_ID -H 'content-type: application/json' -d '{"outcome":"voucher"}'`
//!
//! Proof: `pay`

use tower_keep::reservation::{HoldRef, HoldState, ReservationGuard, Settled};

use crate::announce::Now;
use crate::fault::Fault;
use crate::records::{PaymentRecord, Records};
use crate::state::App;

/// Confirms the hold. A payment that came too late for a time that is gone is given back.
pub async fn confirm<D: Records>(
    app: &App,
    guard: &mut ReservationGuard<D>,
    record: &mut PaymentRecord,
) -> Result<Option<Now>, Fault> {
    // It is back already: events need not come in their order.
    if record.refunded {
        return Ok(None);
    }
    match guard.confirm(HoldRef::payment(&record.payment_id)).await? {
        Settled::Confirmed(_) => {
            record.booking_id = Some(format!("bok_{}", uuid::Uuid::now_v7().simple()));
            D::book(guard, record).await?;
            Ok(Some(("booked", "confirmed")))
        }
        Settled::LateConflict(_) | Settled::DuplicatePayment(_) => {
            // Read again under the hold's own lock: a lease may be lost, this one cannot be.
            let known = D::payment(guard, &record.payment_id).await?;
            if known.is_none_or(|known| known.refunded) {
                return Ok(None);
            }
            record.refunded = true;
            D::give_back(guard, record).await?;
            let (live, told) = (app.live.clone(), record.clone());
            guard.after_commit(async move { live.appointment(&told, "refunded").await });
            // At once where we can; where we cannot, the outbox has it.
            let (provider, payment) = (app.provider.clone(), record.payment_id.clone());
            guard.after_commit(async move {
                let _ = provider.refund(&payment).await;
            });
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// All other events.
pub async fn change<D: Records>(
    app: &App,
    guard: &mut ReservationGuard<D>,
    record: &mut PaymentRecord,
    kind: &str,
) -> Result<Option<Now>, Fault> {
    let payment = HoldRef::payment(&record.payment_id);
    let hold = guard.find(payment).await?.ok_or(Fault::NOT_FOUND)?;
    let holder = record.subject.as_str();
    Ok(match (kind, hold.state()) {
        ("processing", HoldState::Held | HoldState::Processing) => {
            drop(guard.processing(hold.id()).await?);
            Some(("held", "processing"))
        }
        ("failed", HoldState::Processing)
        | ("expired", HoldState::Held | HoldState::Processing) => {
            drop(guard.release(hold.id(), holder).await?);
            Some(("free", "released"))
        }
        ("refunded", state) if !record.refunded => {
            let is_freed = match state {
                HoldState::Confirmed => {
                    drop(guard.cancel(hold.id(), holder).await?);
                    true
                }
                HoldState::Held | HoldState::Processing => {
                    drop(guard.release(hold.id(), holder).await?);
                    true
                }
                _ => false,
            };
            record.refunded = true;
            D::give_back(guard, record).await?;
            if !is_freed {
                // Its time is no matter any more; its page still is.
                let (live, told) = (app.live.clone(), record.clone());
                guard.after_commit(async move { live.appointment(&told, "refunded").await });
            }
            is_freed.then_some(("free", "refunded"))
        }
        _ => None,
    })
}
