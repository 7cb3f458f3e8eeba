//! Many charges at once, over one or several handles.

use std::sync::Arc;

use crate::rate_limit::store::{Bucket, Charge, Mode, Scope, Tag};
use crate::rate_limit::{PartitionKey, Quota, RateLimitStore};

/// Sends `parallel` charges of 1 at a fresh key of `quota` over all `stores` at once, and returns how many were admitted.
///
/// # Panics
/// When a store fails.
pub async fn admitted_of(
    parallel: usize,
    stores: &[Arc<dyn RateLimitStore>],
    quota: Quota,
    group: &str,
) -> usize {
    let scope = Scope::new(group, Tag::Key, "parallel", quota);
    let mut calls = tokio::task::JoinSet::new();
    for index in 0..parallel {
        let (store, scope) = (Arc::clone(&stores[index % stores.len()]), scope.clone());
        calls.spawn(async move {
            let key = PartitionKey::from("one");
            let charge = Charge {
                bucket: Bucket {
                    scope: &scope,
                    key: &key,
                },
                limit: scope.quota().capacity(),
                cost: 1,
                mode: Mode::Enforced,
            };
            let answer = store.check_and_record(&[charge]);
            answer.await.is_ok_and(|verdict| verdict.admitted)
        });
    }
    let admitted = calls.join_all().await;
    admitted.into_iter().filter(|admitted| *admitted).count()
}
