//! Tasks on the runtime: a bounded number at once, the first error stops the rest.

use std::panic::resume_unwind;

use tokio::task::JoinSet;

use super::StageError;

/// What happens to tasks that are under way when one of them fails.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum OnError {
    /// They are cancelled: what they had begun is worth nothing.
    Cancel,
    /// They run to their end: what they had begun must be known.
    Finish,
}

/// Runs all `jobs`, at most `limit` at once, started in order; answers with the first error. None runs any more then.
pub(super) async fn run<F>(limit: usize, on_error: OnError, jobs: impl Iterator<Item = F>) -> Result<(), StageError>
where
    F: Future<Output = Result<(), StageError>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut result = Ok(());
    for job in jobs {
        while tasks.len() >= limit && result.is_ok() {
            result = ended(&mut tasks).await;
        }
        if result.is_err() {
            break;
        }
        tasks.spawn(job);
    }
    while result.is_ok() && !tasks.is_empty() {
        result = ended(&mut tasks).await;
    }
    if on_error == OnError::Finish {
        while !tasks.is_empty() {
            // The first error is the one to tell.
            let _ = ended(&mut tasks).await;
        }
    }
    tasks.shutdown().await;
    result
}

async fn ended(tasks: &mut JoinSet<Result<(), StageError>>) -> Result<(), StageError> {
    match tasks.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(error)) if error.is_panic() => resume_unwind(error.into_panic()),
        Some(Err(_)) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn no_more_than_the_limit_run_at_once_and_an_error_stops_the_rest() {
        for (on_error, fail_at) in [(OnError::Cancel, usize::MAX), (OnError::Finish, 20)] {
            let (now, most, started, ended) = Default::default();
            let counts: Arc<[AtomicUsize; 4]> = Arc::new([now, most, started, ended]);
            let jobs = (0..100).map(|n| {
                let counts = Arc::clone(&counts);
                async move {
                    let [now, most, started, ended] = &*counts;
                    started.fetch_add(1, Ordering::SeqCst);
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    ended.fetch_add(1, Ordering::SeqCst);
                    if n == fail_at { Err(StageError::Modified { path: "x".into() }) } else { Ok(()) }
                }
            });
            let result = run(7, on_error, jobs).await;
            let [_, most, started, ended] = &*counts;
            assert_eq!(result.is_err(), fail_at < 100);
            assert!((1..=7).contains(&most.load(Ordering::SeqCst)));
            assert_eq!(started.load(Ordering::SeqCst), ended.load(Ordering::SeqCst), "all that began has ended");
            assert_eq!(started.load(Ordering::SeqCst) == 100, fail_at > 100);
        }
    }
}
