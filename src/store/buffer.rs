//! Pooled buffers: ciphertext on its way to the disk, and single sectors of plaintext that are wiped before reuse.

use crate::sync::{Mutex, rank};
use crate::units::SECTOR;

/// Sectors that get their place in one go: one FUSE request of the largest size.
pub(super) const CHUNK_SECTORS: usize = 256;
/// Sectors that are encrypted and written in one go. The kernel makes the folios of the backing's page cache as large as
/// the write that fills them, and ext4 walks every block of a folio for each later write into it: with pieces of 1 MiB
/// a 4 KiB overwrite takes three times as long. And this much stays in the caches of a core between cipher and copy.
const PIECE_SECTORS: usize = 16;

/// Working memory of one operation.
pub(super) struct WorkBuffers {
    /// Ciphertext only; never holds plaintext, so never wiped.
    pub cipher: Box<[u8]>,
    /// One sector of plaintext; wiped when the buffers go back to the pool.
    pub plain: Box<[u8; SECTOR]>,
}

/// As many [`WorkBuffers`] as operations ever ran at once.
#[derive(Default)]
pub(super) struct BufferPool {
    free: Mutex<{ rank::BUFFERS }, Vec<WorkBuffers>>,
}

impl BufferPool {
    /// Borrows buffers for one operation. The content of `cipher` is arbitrary, `plain` is zero.
    pub fn take(&self) -> BufferLease<'_> {
        let pooled = self.free.lock().pop();
        let buffers = pooled.unwrap_or_else(|| WorkBuffers {
            cipher: vec![0; PIECE_SECTORS * SECTOR].into_boxed_slice(),
            plain: Box::new([0; SECTOR]),
        });
        BufferLease { pool: self, buffers: Some(buffers) }
    }
}

/// WorkBuffers that go back to their pool when dropped.
pub(super) struct BufferLease<'a> {
    pool: &'a BufferPool,
    buffers: Option<WorkBuffers>,
}

impl std::ops::Deref for BufferLease<'_> {
    type Target = WorkBuffers;

    fn deref(&self) -> &WorkBuffers {
        self.buffers.as_ref().expect("taken in drop only")
    }
}

impl std::ops::DerefMut for BufferLease<'_> {
    fn deref_mut(&mut self) -> &mut WorkBuffers {
        self.buffers.as_mut().expect("taken in drop only")
    }
}

impl Drop for BufferLease<'_> {
    fn drop(&mut self) {
        if let Some(mut buffers) = self.buffers.take() {
            // An ordinary store is enough: the buffer lives on in the pool, so the compiler cannot drop it as dead.
            buffers.plain.fill(0);
            self.pool.free.lock().push(buffers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_is_wiped_before_reuse_and_memory_is_reused() {
        let pool = BufferPool::default();
        let address = {
            let mut lease = pool.take();
            lease.plain.fill(7);
            lease.plain.as_ptr()
        };
        let lease = pool.take();
        assert_eq!(lease.plain.as_ptr(), address);
        assert!(lease.plain.iter().all(|b| *b == 0));
    }
}
