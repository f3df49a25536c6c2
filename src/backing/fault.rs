//! A backing that fails on demand, around any other: how tests reach the error paths.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::Backing;

/// When and how a [`FaultyBacking`] fails; shared with the test that sets it.
#[derive(Debug)]
pub struct Fault {
    countdown: AtomicI64,
    errno: AtomicI64,
}

impl Default for Fault {
    /// Never.
    fn default() -> Self {
        Self { countdown: AtomicI64::new(i64::MAX), errno: AtomicI64::new(0) }
    }
}

impl Fault {
    /// Lets `operations` more reads and writes pass, then fails all with `errno` until armed anew.
    pub fn arm(&self, operations: i64, errno: i32) {
        self.errno.store(errno.into(), Ordering::Relaxed);
        self.countdown.store(operations, Ordering::Release);
    }

    /// No more failures.
    pub fn disarm(&self) {
        self.countdown.store(i64::MAX, Ordering::Release);
    }

    fn check(&self) -> io::Result<()> {
        if self.countdown.fetch_sub(1, Ordering::AcqRel) > 0 {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(self.errno.load(Ordering::Relaxed) as i32))
    }
}

/// Passes everything through to `inner` until its [`Fault`] strikes.
pub struct FaultyBacking<B> {
    inner: B,
    fault: Arc<Fault>,
}

impl<B: Backing> FaultyBacking<B> {
    /// Wraps `inner`.
    pub fn new(inner: B, fault: Arc<Fault>) -> Self {
        Self { inner, fault }
    }
}

impl<B: Backing> Backing for FaultyBacking<B> {
    fn arenas(&self) -> u32 {
        self.inner.arenas()
    }

    fn read_at(&self, arena: u32, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.fault.check()?;
        self.inner.read_at(arena, buf, offset)
    }

    fn write_at(&self, arena: u32, buf: &[u8], offset: u64) -> io::Result<()> {
        self.fault.check()?;
        self.inner.write_at(arena, buf, offset)
    }

    fn discard(&self, arena: u32, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(arena, offset, len)
    }

    fn set_aside(&self, arena: u32, offset: u64, len: u64) -> io::Result<()> {
        self.inner.set_aside(arena, offset, len)
    }

    fn available(&self) -> io::Result<u64> {
        self.inner.available()
    }
}
