//! What is under way though nobody may wait for it any more: counted, so that an orderly stop can wait for its end.
//!
//! Try it: change a profile and press ctrl-C at once: the catalogue has the new name all the same.
//!
//! Proof: `who_hangs_up_in_the_middle_of_a_change_leaves_it_whole`

use tokio::sync::watch;

use crate::fault::Fault;

/// How many changes are under way in this process.
#[derive(Debug, Default)]
pub struct UnderWay(watch::Sender<usize>);

impl UnderWay {
    /// Does what must not be left half done: a client who hangs up ends the waiting, and not the work.
    pub async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<T, Fault> {
        self.0.send_modify(|count| *count += 1);
        let one = One(self.0.clone());
        let work = tokio::spawn(async move {
            let _one = one;
            work.await
        });
        work.await.map_err(|_| Fault::INTERNAL)?
    }

    /// Resolves once nothing is under way.
    pub async fn over(&self) {
        // It fails without a sender only, and there is ours.
        drop(self.0.subscribe().wait_for(|count| *count == 0).await);
    }
}

struct One(watch::Sender<usize>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
