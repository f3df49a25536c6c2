//! XTS-AES-256 over 4096-byte data units, and the keys of a run. Sees neither files nor disks.
//!
//! [`Keyring`] is what the store uses. Below it: [`SectorCipher`] is one expanded key over one of two engines
//! (`aws_lc`, `portable`), `slots` the arena of per-file secrets, `cache` the expanded keys in use, `self_test` the
//! known answer every run starts with.

#[cfg(feature = "aws-lc")]
mod aws_lc;
mod cache;
mod cipher;
mod keyring;
mod portable;
mod self_test;
mod slots;

pub use cipher::{Engine, SectorCipher, XtsKey};
pub use keyring::{KeyShare, Keyring};
pub use slots::SlotId;

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
    /// The two halves of an XTS key are equal, which FIPS 140-3 IG C.I forbids.
    #[error("refused an XTS key whose two halves are equal")]
    EqualHalves,
    /// Every slot number is taken.
    #[error("all {0} key slots are in use; delete files or use several runs")]
    SlotsExhausted(usize),
    /// The data are not whole data units, or source and destination differ in length.
    #[error("{0} bytes are not whole data units of the cipher")]
    Length(usize),
    /// The engine refused, which only a lack of memory explains.
    #[error("the {0} cipher engine failed; the machine may be out of memory")]
    EngineFailed(&'static str),
    /// The key was destroyed.
    #[error("the key has been wiped")]
    Wiped,
}
