//! Buffers for contents on their way to and from S3: reused, and wiped at the end.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use zeroize::Zeroizing;

/// Buffers that wait for their next use. How many bytes are out at once is the business of whoever takes them.
#[derive(Default)]
pub(super) struct Buffers {
    free: Mutex<Vec<Zeroizing<Vec<u8>>>>,
    out: AtomicUsize,
    peak: AtomicUsize,
}

impl Buffers {
    /// A buffer of `len` bytes, with anything in it.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        self.peak.fetch_max(self.out.fetch_add(len, Ordering::Relaxed) + len, Ordering::Relaxed);
        let mut data = self.free.lock().pop().unwrap_or_default();
        if data.len() < len {
            // Not resized: that would leave contents behind in memory that is given back.
            data = Zeroizing::new(vec![0; len]);
        }
        Buffer { data, len, home: Arc::clone(self) }
    }

    /// Most bytes that were out at once.
    #[cfg(test)]
    pub(super) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}

/// One of [`Buffers`]; goes back when it is dropped.
pub(super) struct Buffer {
    data: Zeroizing<Vec<u8>>,
    len: usize,
    home: Arc<Buffers>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.data[..self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.out.fetch_sub(self.len, Ordering::Relaxed);
        self.home.free.lock().push(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_are_counted() {
        let buffers = Arc::new(Buffers::default());
        let mut first = buffers.take(10);
        first.fill(7);
        let second = buffers.take(5);
        assert_eq!((first.len(), second.as_ref().len(), buffers.peak()), (10, 5, 15));
        drop(second);
        drop(first);
        let again = buffers.take(8);
        assert_eq!((again[0], buffers.free.lock().len(), buffers.peak()), (7, 1, 15));
        let larger = buffers.take(100);
        assert_eq!((larger[0], larger.len(), buffers.free.lock().len()), (0, 100, 0));
    }
}
