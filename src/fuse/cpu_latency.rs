//! [`LatencyHolder`]: keeps idle processors from deep sleep while requests come one after another.
//!
//! The caller of a FUSE file system sleeps during each request, and the worker between two of them. When their
//! processors halt meanwhile, waking one takes longer than the request: tens of microseconds in a virtual machine, as
//! much out of a deep C-state. A CPU latency QoS request (Linux, Documentation/power/pm_qos_interface.rst) of 0 makes
//! idle processors wait in their shallowest state instead. It is for the whole machine and costs power, so it is held
//! during bursts of requests only, and dies with its descriptor.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, rank};

/// Kept open; what is written to it holds until the next write or the end of the process.
pub(super) const DEVICE: &str = "/dev/cpu_dma_latency";
/// Microseconds a processor may take to wake: none.
const SHALLOWEST: i32 = 0;
/// `PM_QOS_CPU_LATENCY_DEFAULT_VALUE`: any latency will do.
const ANY: i32 = 2_000_000_000;

/// This many requests ...
const BURST: u32 = 16;
/// ... within this time begin a hold: 2000 a second, of which each waited for two processors to wake.
const BURST_TIME: Duration = Duration::from_millis(8);
/// How long a hold lasts. It is renewed while it sees [`LEAST`] requests: 1000 a second.
const LEASE: Duration = Duration::from_millis(4);
const LEAST: u32 = 4;

/// Decides from the requests of one mount when the machine's processors are to stay awake.
pub(super) struct LatencyHolder {
    inner: Arc<LatencyState>,
    keeper: Option<JoinHandle<()>>,
}

impl LatencyHolder {
    /// Opens the device; an error says why requests will wait for processors to wake.
    pub(super) fn open() -> io::Result<Self> {
        Self::with_device(OpenOptions::new().write(true).open(DEVICE)?, LEASE)
    }

    fn with_device(device: File, lease: Duration) -> io::Result<Self> {
        let inner = Arc::new(LatencyState::new(device, lease));
        let keeper = inner.clone();
        let keeper = thread::Builder::new().name("cpu-latency".to_owned()).spawn(move || keeper.keep())?;
        Ok(Self { inner, keeper: Some(keeper) })
    }

    /// Notes one request whose caller waits for it.
    pub(super) fn request(&self) {
        let inner = &self.inner;
        if inner.held.load(Ordering::Relaxed) {
            inner.seen.fetch_add(1, Ordering::Relaxed);
        } else if inner.burst.request(|| inner.begin.elapsed()) {
            inner.hold();
        }
    }
}

impl Drop for LatencyHolder {
    fn drop(&mut self) {
        *self.inner.stop.lock() = true;
        self.inner.wake.notify_all();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

struct LatencyState {
    device: File,
    /// [`LEASE`], but for tests.
    lease: Duration,
    begin: Instant,
    burst: Burst,
    /// Whether the machine is held. Changed under the lock of `stop` only, after the value has been written: so the last
    /// value written is that of the last change.
    held: AtomicBool,
    /// Requests during the present lease.
    seen: AtomicU32,
    stop: Mutex<{ rank::LATENCY }, bool>,
    wake: Condvar,
}

impl LatencyState {
    fn new(device: File, lease: Duration) -> Self {
        Self {
            device,
            lease,
            begin: Instant::now(),
            burst: Burst::default(),
            held: AtomicBool::new(false),
            seen: AtomicU32::new(0),
            stop: Mutex::new(false),
            wake: Condvar::default(),
        }
    }

    fn hold(&self) {
        // Under the lock, so that the keeper sees neither half of it, nor is on its way from looking to waiting.
        let _stop = self.stop.lock();
        if !self.held.load(Ordering::Acquire) {
            self.write(SHALLOWEST);
            self.held.store(true, Ordering::Release);
            self.wake.notify_all();
        }
    }

    /// Life of the keeper: waits for a hold, renews it while requests come, and ends it.
    fn keep(&self) {
        let mut stop = self.stop.lock();
        while !*stop {
            if !self.held.load(Ordering::Acquire) {
                self.wake.wait(&mut stop);
                continue;
            }
            let ended = self.wake.wait_until(&mut stop, Instant::now() + self.lease);
            if ended && self.seen.swap(0, Ordering::Relaxed) < LEAST {
                self.write(ANY);
                self.held.store(false, Ordering::Release);
            }
        }
    }

    fn write(&self, microseconds: i32) {
        if let Err(error) = (&self.device).write_all(&microseconds.to_ne_bytes()) {
            tracing::debug!(%error, "{DEVICE} was opened and cannot be written");
        }
    }
}

/// Tells a burst from single requests: looks at the clock once in [`BURST`] requests.
#[derive(Default)]
struct Burst {
    count: AtomicU32,
    /// When the last [`BURST`] requests were full, in microseconds.
    since: AtomicU64,
}

impl Burst {
    /// Notes a request; `true` if it ends a burst that was fast enough.
    fn request(&self, now: impl FnOnce() -> Duration) -> bool {
        if !(self.count.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(BURST) {
            return false;
        }
        let now = now().as_micros() as u64;
        let since = self.since.swap(now, Ordering::Relaxed);
        u128::from(now.saturating_sub(since)) < BURST_TIME.as_micros()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Requests `every` so often from `from` on; how many it took to call it a burst.
    fn until_burst(burst: &Burst, from: Duration, every: Duration) -> Option<u32> {
        (0..10 * BURST).find(|n| burst.request(|| from + every * *n))
    }

    #[test]
    fn requests_in_quick_succession_are_a_burst_and_slow_ones_never() {
        let burst = Burst::default();
        let hour = Duration::from_secs(3600);
        assert_eq!(until_burst(&burst, hour, BURST_TIME / BURST), None);
        let found = until_burst(&burst, 2 * hour, BURST_TIME / BURST / 2);
        assert_eq!(found, Some(2 * BURST - 1), "the first {BURST} only say when the next ones begin");
        assert_eq!(until_burst(&burst, 3 * hour, Duration::from_millis(1)), None, "an old burst does not count");
    }

    pub fn values(path: &std::path::Path) -> Vec<i32> {
        let bytes = fs::read(path).expect("readable");
        bytes.chunks(4).map(|value| i32::from_ne_bytes(value.try_into().expect("whole values"))).collect()
    }

    fn latency(file: &tempfile::NamedTempFile, lease: Duration) -> LatencyHolder {
        LatencyHolder::with_device(file.reopen().expect("opened"), lease).expect("a thread")
    }

    #[test]
    fn a_hold_is_written_once_and_the_keeper_does_not_outlive_its_owner() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let latency = latency(&file, Duration::from_secs(3600));
        assert!(values(file.path()).is_empty(), "nothing is held before a request");
        (0..2).for_each(|_| latency.inner.hold());
        (0..100).for_each(|_| latency.request());
        assert_eq!(values(file.path()), [SHALLOWEST]);
        // Would take the hour if the keeper were not woken.
        drop(latency);
    }

    #[test]
    fn a_hold_is_given_back_when_requests_end_and_the_next_burst_holds_again() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let latency = latency(&file, LEASE);
        let deadline = Instant::now() + Duration::from_secs(20);
        for burst in 1..=2 {
            latency.inner.hold();
            while latency.inner.held.load(Ordering::Acquire) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(values(file.path()), [SHALLOWEST, ANY].repeat(burst));
        }
    }
}

#[cfg(all(test, feature = "loom"))]
mod interleavings {
    use std::sync::Arc;

    use loom::thread;

    use super::*;
    use crate::sync::explore;

    /// The last value written is that of the last change, and none is written twice.
    #[test]
    fn the_machine_is_held_as_the_flag_says() {
        explore(|| {
            let device = tempfile::NamedTempFile::new().expect("a file");
            let hold = Arc::new(LatencyState::new(device.reopen().expect("opened"), LEASE));
            let keeper = hold.clone();
            let keeper = thread::spawn(move || keeper.keep());
            let other = hold.clone();
            let other = thread::spawn(move || other.hold());
            hold.hold();
            other.join().expect("no panic");
            *hold.stop.lock() = true;
            hold.wake.notify_all();
            keeper.join().expect("no panic");
            let values = tests::values(device.path());
            assert!(values.windows(2).all(|pair| pair[0] != pair[1]), "{values:?}");
            assert_eq!(values.last() == Some(&SHALLOWEST), hold.held.load(Ordering::Acquire), "{values:?}");
        });
    }
}
