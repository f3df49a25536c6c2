//! A few threads that take jobs until none is left or one fails.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::StageError;

/// Bytes of the buffer each thread reuses: large enough that the cost of a call vanishes, small enough for the cache.
const BUFFER: usize = 1 << 20;
/// Copying is bound by memory and disk; more threads than this do not make it faster.
const MOST_THREADS: usize = 4;

/// Runs `work` on each job that `next` hands out; answers with the first error. Buffers are wiped at the end.
pub(super) fn run<J>(
    next: impl Fn() -> Option<J> + Sync,
    work: impl Fn(&mut [u8], J) -> Result<(), StageError> + Sync,
) -> Result<(), StageError> {
    let stop = AtomicBool::new(false);
    let first = Mutex::new(None);
    let take = || {
        let mut buffer = Zeroizing::new(vec![0; BUFFER]);
        while !stop.load(Ordering::Relaxed) {
            let Some(job) = next() else { return };
            if let Err(error) = work(&mut buffer, job) {
                stop.store(true, Ordering::Relaxed);
                first.lock().get_or_insert(error);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(MOST_THREADS);
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(take);
        }
        take();
    });
    first.into_inner().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::sync::atomic::AtomicU32;

    fn count(to: u32, fail_at: u32) -> (Result<(), StageError>, u32) {
        let (next, done) = (AtomicU32::new(0), AtomicU32::new(0));
        let result = run(
            || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < to),
            |buffer, n| {
                assert_eq!(buffer.len(), BUFFER);
                done.fetch_add(1, Ordering::Relaxed);
                if n == fail_at { Err(StageError::Modified { path: PathBuf::from("x") }) } else { Ok(()) }
            },
        );
        (result, done.into_inner())
    }

    #[test]
    fn every_job_is_done_once_and_an_error_stops_the_rest() {
        assert!(matches!(count(1000, u32::MAX), (Ok(()), 1000)));
        let (result, done) = count(u32::MAX, 100);
        assert!(matches!(result, Err(StageError::Modified { .. })));
        assert!(done < u32::MAX);
    }
}
