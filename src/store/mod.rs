//! The encrypted store: plaintext above, ciphertext below. Knows no paths and no inodes.
//!
//! A [`Content`] is the bytes of one file; the [`Store`] is what all contents of a run share. Down from here:
//! `content` cuts a byte range ([`range`]), finds or allocates sectors ([`layout`], [`extent`], [`alloc`], [`space`]), has the
//! keyring encrypt them into a pooled buffer ([`buffer`]), and writes that to the backing. [`headroom`] is the space
//! behind the limit, for data that somebody was told is written already; [`budget`] is the memory for what is known
//! of files.

mod alloc;
mod budget;
mod buffer;
mod content;
mod extent;
mod headroom;
mod layout;
mod range;
mod shared;
mod space;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

use self::alloc::SectorRun;
pub use self::budget::Budget;
use self::buffer::{BufferLease, BufferPool, CHUNK_SECTORS};
pub use self::content::{Content, SizePolicy};
use self::extent::Extent;
pub use self::headroom::Pressure;
use self::space::{Claim, Space};
use crate::backing::Backing;
use crate::crypt::{CryptError, Keyring, SlotId};
use crate::units::{SECTOR, SECTOR_U64};

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The size limit of the run or the disk below is full, or the memory for what is known of files.
    #[error("no space left in the encrypted store")]
    NoSpace,
    /// An earlier write of ciphertext failed: the store has latched and takes no more data.
    #[error("the encrypted store takes no more data because an earlier write to the backing failed")]
    Latched,
    /// Reading or writing ciphertext failed.
    #[error("backing {op} failed: {source}")]
    Backing {
        /// `read` or `write`.
        op: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// A key could not be made, or all keys have been wiped.
    #[error(transparent)]
    Key(#[from] CryptError),
}

/// What the store holds and may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceUsage {
    /// Sectors (4096 bytes) that may be allocated.
    pub limit: u64,
    /// Sectors allocated now.
    pub used: u64,
}

/// What went through the store since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoreStats {
    /// Bytes encrypted and written.
    pub bytes_encrypted: u64,
    /// Bytes read and decrypted.
    pub bytes_decrypted: u64,
    /// Writes to the backing.
    pub backing_writes: u64,
    /// Reads from the backing.
    pub backing_reads: u64,
}

#[derive(Default)]
struct StoreCounters {
    bytes_encrypted: AtomicU64,
    bytes_decrypted: AtomicU64,
    backing_writes: AtomicU64,
    backing_reads: AtomicU64,
}

/// The shared part of all [`Content`]s of a run.
pub struct Store {
    keyring: Keyring,
    space: Space,
    buffers: BufferPool,
    metadata: Budget,
    latched: AtomicBool,
    counters: StoreCounters,
}

impl Store {
    /// A store of at most `limit` bytes (rounded down to sectors) over `backing`, with the keys of `keyring`.
    pub fn new(backing: Box<dyn Backing>, keyring: Keyring, limit: u64) -> Arc<Self> {
        Arc::new(Self {
            keyring,
            space: Space::new(backing, limit / SECTOR_U64),
            buffers: BufferPool::default(),
            metadata: Budget::default(),
            latched: AtomicBool::new(false),
            counters: StoreCounters::default(),
        })
    }

    /// Space allowed and taken.
    pub fn usage(&self) -> SpaceUsage {
        SpaceUsage { limit: self.space.limit(), used: self.space.used() }
    }

    /// Sectors that can still be written: what the limit leaves, or the disk if that is less.
    pub fn available(&self) -> u64 {
        self.space.available()
    }

    /// Sectors of the disk that are nobody's; very many where it cannot tell.
    pub fn disk_free(&self) -> u64 {
        self.space.disk_free()
    }

    /// Sets space aside behind the limit, on the disk too, for bytes that are accepted before they are written here: up to
    /// `early` of them while space is ample, up to `late` when it is not. Once, before the first write.
    /// [`Store::pressure`] then tells when to accept no more.
    ///
    /// # Errors
    /// The disk has not that much room, or cannot set space aside. Then part of what is free takes its place, as long
    /// as others leave it there.
    pub fn set_headroom(&self, early: u64, late: u64) -> io::Result<()> {
        self.space.set_headroom(early.div_ceil(SECTOR_U64), late.div_ceil(SECTOR_U64))
    }

    /// How near the end is, of the space or of the memory for extents.
    pub fn pressure(&self) -> Pressure {
        self.space.pressure(self.metadata.extents())
    }

    /// The memory that is taken by what is known of files. Contents count in it by themselves.
    pub fn metadata(&self) -> &Budget {
        &self.metadata
    }

    /// The keys of the run.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Totals since the store was made.
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            bytes_encrypted: self.counters.bytes_encrypted.load(Ordering::Relaxed),
            bytes_decrypted: self.counters.bytes_decrypted.load(Ordering::Relaxed),
            backing_writes: self.counters.backing_writes.load(Ordering::Relaxed),
            backing_reads: self.counters.backing_reads.load(Ordering::Relaxed),
        }
    }

    /// Whether a failed write has stopped the store for good: contents may be incomplete and must not be published.
    pub fn latched(&self) -> bool {
        self.latched.load(Ordering::Acquire)
    }

    /// Destroys every key; all contents are unreadable from here on. Reads and writes afterwards fail with
    /// [`StoreError::Key`].
    pub fn wipe(&self) {
        self.keyring.wipe();
    }

    /// Working memory of one operation.
    fn buffers(&self) -> BufferLease<'_> {
        self.buffers.take()
    }

    /// A fresh key slot with one reference.
    fn take_slot(&self) -> Result<SlotId, StoreError> {
        Ok(self.keyring.acquire()?)
    }

    /// One more reference to a live slot, for the time of a writing.
    fn lease(&self, slot: SlotId) -> SlotLease<'_> {
        self.keyring.retain(slot, 1);
        SlotLease { store: self, slot }
    }

    /// Gives references to a slot back; the key goes with the last.
    fn release_slot(&self, slot: SlotId, references: u32) {
        self.keyring.release(slot, references);
    }

    /// One more reference to the sectors of an extent.
    fn share(&self, extent: &Extent) {
        self.space.share(extent);
    }

    /// Refuses one more extent for somebody who learns of it, when the memory for them is taken.
    fn check_metadata(&self, claim: Claim) -> Result<(), StoreError> {
        if claim == Claim::Limit && self.metadata.extents() == 0 { Err(StoreError::NoSpace) } else { Ok(()) }
    }

    /// Refuses when an earlier write failed.
    fn check_latch(&self) -> Result<(), StoreError> {
        if self.latched() { Err(StoreError::Latched) } else { Ok(()) }
    }

    /// Encrypts `plain` (whole sectors) and writes it to a place with fresh sequence numbers. Takes up to
    /// [`CHUNK_SECTORS`] sectors and returns what it wrote, perhaps less if space is fragmented; the charge and one
    /// reference to the slot per sector pass to the returned extent.
    fn place(
        &self,
        lease: &SlotLease<'_>,
        plain: &[u8],
        cipher: &mut [u8],
        claim: Claim,
    ) -> Result<Extent, StoreError> {
        let wanted = (plain.len() / SECTOR).min(CHUNK_SECTORS) as u64;
        self.check_latch()?;
        self.check_metadata(claim)?;
        if !self.space.charge(wanted, claim) {
            return Err(StoreError::NoSpace);
        }
        for site in self.space.sites(claim) {
            let Some((arena, run)) = self.space.allocate(site, wanted) else { continue };
            let extent = extent_of(arena, run, lease.slot);
            match self.write_extent(&extent, &plain[..run.len as usize * SECTOR], cipher) {
                Ok(()) => {
                    self.space.discharge(wanted - run.len);
                    self.keyring.retain(lease.slot, extent.len);
                    return Ok(extent);
                }
                Err(error) => {
                    // `free` takes the charge of the run back; the rest stays charged for the next site.
                    self.space.free(arena, run.block, run.len);
                    if !matches!(error, StoreError::NoSpace) || !self.space.charge(run.len, claim) {
                        self.space.discharge(wanted - run.len);
                        return Err(error);
                    }
                }
            }
        }
        self.space.discharge(wanted);
        Err(StoreError::NoSpace)
    }

    /// Charges and allocates space without data, on the disk too; perhaps less than `wanted` sectors.
    fn reserve(&self, wanted: u64) -> Result<Extent, StoreError> {
        self.check_latch()?;
        self.check_metadata(Claim::Limit)?;
        let wanted = wanted.min(u64::from(u32::MAX));
        if !self.space.charge(wanted, Claim::Limit) {
            return Err(StoreError::NoSpace);
        }
        for site in self.space.sites(Claim::Limit) {
            let Some((arena, run)) = self.space.allocate(site, wanted) else { continue };
            if self.space.set_aside(arena, run.block, run.len) {
                self.space.discharge(wanted - run.len);
                return Ok(Extent::reserved(arena, run.block, run.len as u32));
            }
            self.space.free(arena, run.block, run.len);
            if !self.space.charge(run.len, Claim::Limit) {
                self.space.discharge(wanted - run.len);
                return Err(StoreError::NoSpace);
            }
        }
        self.space.discharge(wanted);
        Err(StoreError::NoSpace)
    }

    /// Encrypts `plain` into reserved space, with fresh sequence numbers; one reference to the slot per sector passes to
    /// the returned extent.
    fn fill(
        &self,
        lease: &SlotLease<'_>,
        reserved: Extent,
        plain: &[u8],
        cipher: &mut [u8],
    ) -> Result<Extent, StoreError> {
        let seq = self.space.sequence(reserved.arena, u64::from(reserved.len));
        let extent = Extent { seq, slot: lease.slot, ..reserved };
        self.write_extent(&extent, plain, cipher)?;
        self.keyring.retain(lease.slot, extent.len);
        Ok(extent)
    }

    /// Encrypts `plain` (whole sectors, as long as the extent) and writes it there, piece by piece.
    fn write_extent(&self, extent: &Extent, plain: &[u8], cipher: &mut [u8]) -> Result<(), StoreError> {
        self.check_latch()?;
        let mut at = 0;
        for plain in plain.chunks(cipher.len()) {
            let cipher = &mut cipher[..plain.len()];
            self.keyring.encrypt(extent.slot, extent.seq + at, plain, cipher)?;
            self.write_cipher(extent.arena, extent.block + at, cipher)?;
            at += (plain.len() / SECTOR) as u64;
        }
        Ok(())
    }

    fn write_cipher(&self, arena: u16, block: u64, cipher: &[u8]) -> Result<(), StoreError> {
        self.counters.backing_writes.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_encrypted.fetch_add(cipher.len() as u64, Ordering::Relaxed);
        self.space.backing().write_at(u32::from(arena), cipher, block * SECTOR_U64).map_err(|source| {
            if is_full(&source) {
                return StoreError::NoSpace;
            }
            self.latched.store(true, Ordering::Release);
            tracing::error!(error = %source, "writing ciphertext failed; the scratch takes no more data");
            StoreError::Backing { op: "write", source }
        })
    }

    /// Reads and decrypts an extent into `buf`, which is as long as the extent.
    fn read_extent(&self, extent: &Extent, buf: &mut [u8]) -> Result<(), StoreError> {
        self.counters.backing_reads.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_decrypted.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.space
            .backing()
            .read_at(u32::from(extent.arena), buf, extent.block * SECTOR_U64)
            .map_err(|source| StoreError::Backing { op: "read", source })?;
        Ok(self.keyring.decrypt(extent.slot, extent.seq, buf)?)
    }

    /// Gives one reference to each extent back: space and keys with the last.
    fn release(&self, extents: &[Extent]) {
        for extent in extents {
            let freed = self.space.release(extent);
            if !extent.is_reserved() && freed > 0 {
                self.release_slot(extent.slot, freed as u32);
            }
        }
    }
}

#[cfg(debug_assertions)]
impl Store {
    /// Asserts the invariants of allocators, shared sectors and key slots.
    pub fn check(&self) {
        self.space.check();
        self.keyring.check();
    }
}

/// A reference to a key slot while something is encrypted under it: the slot cannot die meanwhile.
struct SlotLease<'a> {
    store: &'a Store,
    slot: SlotId,
}

impl Drop for SlotLease<'_> {
    fn drop(&mut self) {
        self.store.release_slot(self.slot, 1);
    }
}

fn extent_of(arena: u16, run: SectorRun, slot: SlotId) -> Extent {
    Extent { block: run.block, seq: run.seq, slot, len: run.len as u32, arena, shared: false }
}

/// Whether an error means that this arena's disk is full, rather than broken.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}
