//! Nameless arena files that hold ciphertext. Sees neither plaintext nor keys nor file names.

mod anon;
mod fault;
mod memory;

use std::io;

pub use self::anon::{AnonBacking, BackingError};
pub use self::fault::{Fault, FaultyBacking};
pub use self::memory::MemoryBacking;

/// A set of byte arrays ("arenas") without names.
///
/// Reads and writes are positional and whole: a short transfer is an error.
pub trait Backing: Send + Sync {
    /// Number of arenas, 1 to 65535, numbered from 0.
    fn arenas(&self) -> u32;

    /// Fills `buf` from `offset` (bytes) of `arena`; never-written bytes read as zeros.
    fn read_at(&self, arena: u32, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset` (bytes) of `arena`.
    fn write_at(&self, arena: u32, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Gives the disk space of a range back (`fallocate(2)` with `FALLOC_FL_PUNCH_HOLE`).
    fn discard(&self, arena: u32, offset: u64, len: u64) -> io::Result<()>;

    /// Has the disk hold room for a range that will be written later (`fallocate(2)`).
    ///
    /// # Errors
    /// `Unsupported` where the file system cannot do so.
    fn set_aside(&self, arena: u32, offset: u64, len: u64) -> io::Result<()>;

    /// Bytes that can still be written before the disks are full.
    fn available(&self) -> io::Result<u64>;
}

impl<B: Backing + ?Sized> Backing for std::sync::Arc<B> {
    fn arenas(&self) -> u32 {
        (**self).arenas()
    }

    fn read_at(&self, arena: u32, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_at(arena, buf, offset)
    }

    fn write_at(&self, arena: u32, buf: &[u8], offset: u64) -> io::Result<()> {
        (**self).write_at(arena, buf, offset)
    }

    fn discard(&self, arena: u32, offset: u64, len: u64) -> io::Result<()> {
        (**self).discard(arena, offset, len)
    }

    fn set_aside(&self, arena: u32, offset: u64, len: u64) -> io::Result<()> {
        (**self).set_aside(arena, offset, len)
    }

    fn available(&self) -> io::Result<u64> {
        (**self).available()
    }
}
