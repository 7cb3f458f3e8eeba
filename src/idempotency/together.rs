//! Several calls to a store under way at once.

use std::pin::Pin;
use std::task::Poll;

use crate::core::StoreFuture;

/// Waits for all of them at once, and counts those that went well.
pub(super) async fn succeeded<T>(mut under_way: Vec<Option<StoreFuture<T>>>) -> usize {
    let mut well = 0;
    std::future::poll_fn(|cx| {
        for place in &mut under_way {
            if let Some(one) = place
                && let Poll::Ready(ended) = Pin::new(one).poll(cx)
            {
                well += usize::from(ended.is_ok());
                *place = None;
            }
        }
        match under_way.iter().all(Option::is_none) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    well
}
