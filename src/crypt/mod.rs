//! XTS-AES-256 over 4096-byte data units, and the keys of a run. Sees neither files nor disks.

use crate::spec::{EngineChoice, MemoryLock};

/// Names one key slot of the arena: a 32-byte random value from which one content key is derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId(pub u32);

/// Why the keys or the cipher could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CryptError {
    /// The kernel gave no random bytes or no memory.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// The engine asked for is not in this build.
    #[error("this build has no {0} cipher engine; use --cipher-engine auto or portable")]
    NoEngine(&'static str),
    /// The known-answer self-test failed.
    #[error("the {0} cipher engine failed its self-test; do not use this machine for sealed runs")]
    SelfTest(&'static str),
    /// Memory could not be locked and the policy requires it.
    #[error(
        "memory cannot be locked: {0}; raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=) or drop --memory-lock=require"
    )]
    NotLocked(String),
}

/// The run key and every key slot of a run, with the engine that uses them.
///
/// Invariant: after [`Keyring::wipe`], and after the last [`Keyring::release`] of a slot, no copy of the key
/// material concerned remains in this process.
pub struct Keyring {
    _private: (),
}

impl Keyring {
    /// Draws a run key, chooses the engine, runs its self-test.
    pub fn new(_engine: EngineChoice, _lock: MemoryLock) -> Result<Self, CryptError> {
        Ok(Self { _private: () })
    }

    /// Name and version of the engine, as reports show it.
    pub fn engine(&self) -> &'static str {
        "stub"
    }

    /// A fresh slot with one reference.
    pub fn acquire(&self) -> Result<SlotId, CryptError> {
        Ok(SlotId(0))
    }

    /// Adds `n` references to a live slot.
    pub fn retain(&self, _slot: SlotId, _n: u32) {}

    /// Gives `n` references back; wipes the slot, and every cached key made from it, with the last.
    pub fn release(&self, _slot: SlotId, _n: u32) {}

    /// Encrypts whole sectors from `src` into `dst` (same length, a multiple of 4096). The first has data-unit
    /// sequence number `unit`, the following ones count up.
    pub fn encrypt(&self, _slot: SlotId, _unit: u64, src: &[u8], dst: &mut [u8]) -> Result<(), CryptError> {
        dst.copy_from_slice(src);
        Ok(())
    }

    /// Decrypts whole sectors in place; the inverse of [`Keyring::encrypt`].
    pub fn decrypt(&self, _slot: SlotId, _unit: u64, _buf: &mut [u8]) -> Result<(), CryptError> {
        Ok(())
    }

    /// Slots alive now.
    pub fn live_slots(&self) -> u64 {
        0
    }

    /// Destroys the run key and all slots. Encrypting or decrypting afterwards panics.
    pub fn wipe(&self) {}
}
