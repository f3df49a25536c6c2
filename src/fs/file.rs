//! Regular files: bytes in and out.

use std::ops::Range;
use std::sync::Arc;

use super::{Fallocate, FsError, Scratch, Time, WriteMode};
use crate::store::{Content, Store};
use crate::units::SECTOR_U64;

/// Largest size of a file: `off_t` ends there.
const MAX_SIZE: u64 = i64::MAX as u64;
/// Bytes of one block as `st_blocks` counts them.
const BLOCK: u64 = 512;

/// A content, and the store it gives everything back to when it goes.
pub(super) struct File {
    content: Content,
    store: Arc<Store>,
}

impl Scratch {
    /// Reads at `offset` up to the end of `buf` or of the file; returns the bytes read.
    pub fn read(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let inode = self.inode(ino)?;
        let file = inode.file()?;
        Ok(file.content.read_at(&file.store, offset, buf)?)
    }

    /// Writes all of `data` at `offset`.
    pub fn write(&self, ino: u64, offset: u64, data: &[u8], mode: WriteMode) -> Result<(), FsError> {
        let inode = self.inode(ino)?;
        let file = inode.file()?;
        if data.is_empty() {
            return Ok(());
        }
        end(offset, data.len() as u64)?;
        file.content.write_at(&file.store, offset, data)?;
        if mode.kill_suidgid || !mode.keep_times {
            let mut meta = inode.meta();
            if mode.kill_suidgid {
                meta.clear_suid_sgid();
            }
            if !mode.keep_times {
                meta.modified(Time::now());
            }
        }
        Ok(())
    }

    /// Reserves, zeroes or frees a range (fallocate(2)).
    pub fn fallocate(&self, ino: u64, offset: u64, len: u64, mode: Fallocate) -> Result<(), FsError> {
        let inode = self.inode(ino)?;
        let File { content, store } = inode.file()?;
        if len == 0 {
            return Err(FsError::Invalid);
        }
        end(offset, len)?;
        match mode {
            Fallocate::Allocate { keep_size } => content.allocate(store, offset, len, keep_size)?,
            Fallocate::Punch => content.punch(store, offset, len)?,
            Fallocate::Zero { keep_size } => {
                content.punch(store, offset, len)?;
                content.allocate(store, offset, len, keep_size)?;
            }
        }
        inode.meta().modified(Time::now());
        Ok(())
    }

    /// Copies a range between two files, or inside one if source and target do not overlap (copy_file_range(2));
    /// returns the bytes copied, fewer than `len` only at the end of the source.
    pub fn copy_file_range(
        &self,
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        len: u64,
    ) -> Result<u64, FsError> {
        let (source, target) = (self.inode(from)?, self.inode(to)?);
        let (source, file) = (source.file()?, target.file()?);
        let len = len.min(source.size().saturating_sub(from_offset));
        if len == 0 {
            return Ok(0);
        }
        end(to_offset, len)?;
        if from == to && from_offset.abs_diff(to_offset) < len {
            return Err(FsError::Invalid);
        }
        let copied = file.content.copy_from(&file.store, to_offset, &source.content, from_offset, len)?;
        target.meta().modified(Time::now());
        Ok(copied)
    }

    /// First range of data that ends behind `offset`, cut at `offset`.
    pub fn next_data(&self, ino: u64, offset: u64) -> Result<Option<Range<u64>>, FsError> {
        let inode = self.inode(ino)?;
        Ok(inode.file()?.content.next_data(offset))
    }
}

impl File {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { content: Content::new(), store }
    }

    pub(super) fn size(&self) -> u64 {
        self.content.size()
    }

    pub(super) fn blocks(&self) -> u64 {
        self.content.sectors() * (SECTOR_U64 / BLOCK)
    }

    pub(super) fn set_size(&self, size: u64) -> Result<(), FsError> {
        end(0, size)?;
        Ok(self.content.set_size(&self.store, size)?)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.content.clear(&self.store);
    }
}

/// The end of a range, if a file may be that large.
fn end(offset: u64, len: u64) -> Result<u64, FsError> {
    offset.checked_add(len).filter(|&end| end <= MAX_SIZE).ok_or(FsError::TooLarge)
}
