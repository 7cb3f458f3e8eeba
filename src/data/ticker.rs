//! Notices for engines that send none: a bell that rings by itself.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::core::{Notice, NoticeCallback, Subscription};

/// Calls back again and again, after a random time within `pause`, until the subscription is dropped.
pub(crate) fn every(pause: RangeInclusive<Duration>, callback: NoticeCallback) -> Subscription {
    let task = tokio::spawn(async move {
        loop {
            let random = f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX);
            let spread = pause.end().saturating_sub(*pause.start());
            tokio::time::sleep(*pause.start() + spread.mul_f64(random)).await;
            callback(Notice::Restored);
        }
    });
    let task = task.abort_handle();
    Subscription::new(move || task.abort())
}
