//! The encrypted store: plaintext above, ciphertext below. Knows no paths and no inodes.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::backing::Backing;
use crate::crypt::{CryptError, Keyring};
use crate::units::SECTOR_U64;

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The size limit of the run or the disk below is full.
    #[error("no space left in the encrypted store")]
    NoSpace,
    /// An earlier write of ciphertext failed: the store has latched and takes no more data.
    #[error("the encrypted store stopped after a failed write")]
    Latched,
    /// Reading or writing ciphertext failed.
    #[error("backing {op} failed: {source}")]
    Backing {
        /// `read` or `write`.
        op: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// A key could not be made.
    #[error(transparent)]
    Key(#[from] CryptError),
}

/// What the store holds and may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Sectors (4096 bytes) that may be allocated.
    pub limit: u64,
    /// Sectors allocated now.
    pub used: u64,
}

/// The shared part of all [`Content`]s of a run.
pub struct Store {
    limit: u64,
    used: AtomicU64,
}

impl Store {
    /// A store of at most `limit` bytes (rounded down to sectors) over `backing`, with the keys of `keyring`.
    pub fn new(_backing: Box<dyn Backing>, _keyring: Keyring, limit: u64) -> Arc<Self> {
        Arc::new(Self { limit: limit / SECTOR_U64, used: AtomicU64::new(0) })
    }

    /// Space allowed and taken.
    pub fn usage(&self) -> Usage {
        Usage { limit: self.limit, used: self.used.load(Ordering::Relaxed) }
    }

    /// Whether a failed write has stopped the store for good.
    pub fn latched(&self) -> bool {
        false
    }

    /// Waits until freed space has been given back to the disk.
    pub fn flush_discards(&self) {}

    /// Destroys every key; all contents are unreadable from here on. Reads and writes afterwards fail with
    /// [`StoreError::Latched`].
    pub fn wipe(&self) {}
}

/// The bytes of one file: a sparse array of up to 2^63-1 bytes with its own lock and its own key slot.
///
/// Bytes never written read as zeros. All methods may be called from several threads at once. A content does not
/// know its store (to stay small): pass the same one each time, and call [`Content::clear`] before dropping.
pub struct Content {
    inner: RwLock<Vec<u8>>,
}

impl Default for Content {
    fn default() -> Self {
        Self::new()
    }
}

impl Content {
    /// No bytes, no space, no key.
    pub const fn new() -> Self {
        Self { inner: RwLock::new(Vec::new()) }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.inner.read().len() as u64
    }

    /// Sectors allocated.
    pub fn sectors(&self) -> u64 {
        (self.inner.read().len() as u64).div_ceil(SECTOR_U64)
    }

    /// Reads at `offset` up to the end of `buf` or of the content; returns the bytes read.
    pub fn read_at(&self, _store: &Store, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let data = self.inner.read();
        let start = (offset as usize).min(data.len());
        let n = buf.len().min(data.len() - start);
        buf[..n].copy_from_slice(&data[start..start + n]);
        Ok(n)
    }

    /// Writes all of `data` at `offset`, growing the content as needed. On error the bytes before the failed
    /// sector may have been written, the size has not grown past them.
    pub fn write_at(&self, _store: &Store, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let mut inner = self.inner.write();
        let end = offset as usize + data.len();
        if inner.len() < end {
            inner.resize(end, 0);
        }
        inner[offset as usize..end].copy_from_slice(data);
        Ok(())
    }

    /// Sets the size: truncates, or extends with zeros without taking space.
    pub fn set_size(&self, _store: &Store, size: u64) -> Result<(), StoreError> {
        self.inner.write().resize(size as usize, 0);
        Ok(())
    }

    /// Reserves space for a range (`fallocate(2)` mode 0); grows the size unless `keep_size`.
    pub fn allocate(&self, _store: &Store, offset: u64, len: u64, keep_size: bool) -> Result<(), StoreError> {
        let mut inner = self.inner.write();
        let end = (offset + len) as usize;
        if !keep_size && inner.len() < end {
            inner.resize(end, 0);
        }
        Ok(())
    }

    /// Turns a range into a hole (`FALLOC_FL_PUNCH_HOLE`); the size stays.
    pub fn punch(&self, _store: &Store, offset: u64, len: u64) -> Result<(), StoreError> {
        let mut inner = self.inner.write();
        let size = inner.len();
        let start = (offset as usize).min(size);
        let end = ((offset + len) as usize).min(size);
        inner[start..end].fill(0);
        Ok(())
    }

    /// Copies a range of `source` (never `self`; copy inside one content with [`Content::copy_within`]), sharing
    /// sectors where both ends are aligned; returns the bytes copied, short only at the end of `source`.
    pub fn copy_from(
        &self,
        store: &Store,
        offset: u64,
        source: &Content,
        source_offset: u64,
        len: u64,
    ) -> Result<u64, StoreError> {
        let mut buf = vec![0; len.min(source.size().saturating_sub(source_offset)) as usize];
        let n = source.read_at(store, source_offset, &mut buf)?;
        self.write_at(store, offset, &buf[..n])?;
        Ok(n as u64)
    }

    /// Copies a range inside this content; the ranges must not overlap.
    pub fn copy_within(&self, store: &Store, offset: u64, source_offset: u64, len: u64) -> Result<u64, StoreError> {
        let mut buf = vec![0; len.min(self.size().saturating_sub(source_offset)) as usize];
        let n = self.read_at(store, source_offset, &mut buf)?;
        self.write_at(store, offset, &buf[..n])?;
        Ok(n as u64)
    }

    /// The first range of data (not hole) that ends after `offset`, cut at `offset` and at the size; `None` when
    /// only a hole or nothing follows.
    pub fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let size = self.size();
        (offset < size).then_some(offset..size)
    }

    /// Gives back all space and the key slot; size becomes 0.
    pub fn clear(&self, _store: &Store) {
        self.inner.write().clear();
    }
}
