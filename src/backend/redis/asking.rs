//! Asks several servers the same, each a little after the one before: the first answer wins, and one that is silent
//! holds up nobody.

use std::future::Future;
use std::io;
use std::time::Duration;

use redis::RedisError;
use tokio::task::JoinSet;

use super::error;
use crate::core::telemetry::debug;

/// How long one is waited for alone.
const NEXT_AFTER: Duration = Duration::from_millis(100);

/// Returns the first answer that is none of failure. The next is asked when the one before has failed, or was silent
/// for 100 ms; it may answer still. The caller bounds the time.
///
/// Dropping the future ends all questions.
pub(super) async fn first_answer<T, Q>(
    questions: impl IntoIterator<Item = Q, IntoIter: Send>,
) -> Result<T, RedisError>
where
    T: Send + 'static,
    Q: Future<Output = Result<T, RedisError>> + Send + 'static,
{
    let mut questions = questions.into_iter();
    let mut asked = JoinSet::new();
    let mut last = error::away("there is nobody to ask");
    loop {
        let answer = match questions.next() {
            Some(question) => {
                asked.spawn(question);
                match tokio::time::timeout(NEXT_AFTER, asked.join_next()).await {
                    Ok(answer) => answer,
                    Err(_elapsed) => continue,
                }
            }
            None => asked.join_next().await,
        };
        match answer {
            Some(Ok(Ok(found))) => return Ok(found),
            Some(Ok(Err(error))) => last = error,
            Some(Err(error)) => last = io::Error::other(error).into(),
            None => return Err(last),
        }
        debug!(error = %last, "one of several servers had no answer");
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::Pin;

    use super::*;

    type Question = Pin<Box<dyn Future<Output = Result<u8, RedisError>> + Send>>;

    fn silent() -> Question {
        Box::pin(pending())
    }

    fn says(answer: u8) -> Question {
        Box::pin(async move { Ok(answer) })
    }

    fn fails(why: &'static str) -> Question {
        Box::pin(async move { Err(error::away(why)) })
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_answer_wins_whoever_is_silent_or_fails_before_it() {
        let began = tokio::time::Instant::now();
        assert_eq!(first_answer([says(1), says(2)]).await.unwrap(), 1);
        assert_eq!(first_answer([fails("a"), says(2)]).await.unwrap(), 2);
        assert_eq!(began.elapsed(), Duration::ZERO);
        let found = first_answer([silent(), silent(), fails("a"), says(3)]).await;
        assert_eq!(found.unwrap(), 3);
        assert_eq!(began.elapsed(), 2 * NEXT_AFTER);
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_fail_the_last_says_why() {
        let failed = first_answer([fails("a"), fails("b")]).await.unwrap_err();
        assert!(failed.to_string().contains('b'), "{failed}");
        assert!(first_answer::<u8, Question>([]).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answers_late_is_heard_while_others_are_asked() {
        let slow: Question = Box::pin(async {
            tokio::time::sleep(3 * NEXT_AFTER).await;
            Ok(1)
        });
        assert_eq!(first_answer([slow, silent(), silent()]).await.unwrap(), 1);
    }
}
