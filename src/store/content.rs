//! The bytes of one file.
//!
//! Locking: one `RwLock` per content, never held while another content's lock is taken. Under the shared lock run
//! reads, and overwrites of whole sectors in place: they change no mapping, and XTS keeps a read that meets an
//! overwrite to a mix of old and new 16-byte blocks, as a plain file system would. Under the exclusive lock runs
//! everything that changes the mapping or the size, and every change of part of a sector. New sectors are encrypted
//! and written before they are mapped, outside the lock.

use std::ops::Range;

use std::sync::Arc;

use super::buffer::CHUNK_SECTORS;
use super::extent::{Extent, Segment};
use super::layout::{Edit, Layout, Writing};
use super::range::{Split, whole_sectors};
use super::space::Claim;
use super::{Store, StoreError};
use crate::sync::{RwLock, rank};
use crate::units::{SECTOR, SECTOR_U64};

/// The bytes of one file: a sparse array of up to 2^63-1 bytes with its own lock and its own key slot.
///
/// Bytes never written read as zeros. All methods may be called from several threads at once. Dropping it gives back
/// its space and its key.
pub struct Content {
    store: Arc<Store>,
    layout: RwLock<{ rank::LAYOUT }, Layout>,
}

/// Whether reserving space behind the end moves the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizePolicy {
    /// The size covers what was reserved.
    Grow,
    /// The size stays (`FALLOC_FL_KEEP_SIZE`).
    Keep,
}

impl Content {
    /// No bytes, no space, no key.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, layout: RwLock::default() }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.layout.read().size
    }

    /// Sectors allocated.
    pub fn sectors(&self) -> u64 {
        self.layout.read().sectors
    }

    /// Whether space is reserved in it that is not written yet.
    pub fn has_reserved(&self) -> bool {
        self.layout.read().map.has_reserved()
    }

    /// Reads at `offset` up to the end of `buf` or of the content; returns the bytes read.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let layout = self.layout.read();
        let length = (buf.len() as u64).min(layout.size.saturating_sub(offset)) as usize;
        layout.read(&self.store, offset, length, buf)?;
        Ok(length)
    }

    /// Writes all of `data` at `offset`, growing the content as needed. After an error the parts before the failed
    /// one may have been written, and the size covers no more than what was.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.write(offset, data, Claim::Limit)
    }

    /// As [`Content::write_at`], for data somebody was told is written: it may take the headroom too.
    pub fn write_back_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.write(offset, data, Claim::Headroom)
    }

    /// Sets the size: truncates, or extends with zeros without taking space.
    pub fn set_size(&self, size: u64) -> Result<(), StoreError> {
        let mut edit = self.edit();
        if size <= edit.layout.size {
            edit.zero_part(size, size.next_multiple_of(SECTOR_U64))?;
            edit.unmap(size.div_ceil(SECTOR_U64)..u64::MAX);
        }
        edit.layout.size = size;
        Ok(())
    }

    /// Reserves space for a range (`fallocate(2)` mode 0); what was reserved before an error stays
    /// reserved.
    pub fn allocate(&self, offset: u64, len: u64, size: SizePolicy) -> Result<(), StoreError> {
        let mut edit = self.edit();
        let end = offset + len;
        let (mut sector, last) = (offset / SECTOR_U64, end.div_ceil(SECTOR_U64));
        while sector < last {
            let segment = edit.layout.map.segment(sector, last - sector);
            sector += match segment {
                Segment::Hole(missing) => {
                    let extent = self.store.reserve(missing)?;
                    edit.map_at(sector, extent);
                    u64::from(extent.len)
                }
                present => present.len(),
            };
        }
        if size == SizePolicy::Grow {
            edit.layout.size = edit.layout.size.max(end);
        }
        Ok(())
    }

    /// Turns a range into a hole (`FALLOC_FL_PUNCH_HOLE`); the size stays.
    ///
    /// # Errors
    /// As for writing: a hole in the middle makes two extents of one.
    pub fn punch(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.store.check_metadata(Claim::Limit)?;
        let mut edit = self.edit();
        let end = offset.saturating_add(len);
        let (first, last) = whole_sectors(offset, end);
        if first > last {
            return edit.zero_part(offset, end);
        }
        edit.zero_part(offset, first * SECTOR_U64)?;
        edit.zero_part(last * SECTOR_U64, end)?;
        edit.unmap(first..last);
        Ok(())
    }

    /// Copies a range of `source`, which may be `self` if the ranges do not overlap, sharing whole sectors where
    /// both offsets are equally aligned; returns the bytes copied, short only at the end of `source`.
    pub fn copy_from(&self, offset: u64, source: &Content, source_offset: u64, len: u64) -> Result<u64, StoreError> {
        let len = len.min(source.size().saturating_sub(source_offset));
        let aligned = offset % SECTOR_U64 == source_offset % SECTOR_U64;
        let (first, last) = whole_sectors(source_offset, source_offset + len);
        if !aligned || first >= last {
            self.copy_bytes(offset, source, source_offset, len)?;
            return Ok(len);
        }
        self.store.check_metadata(Claim::Limit)?;
        let (head, whole) = (first * SECTOR_U64 - source_offset, (last - first) * SECTOR_U64);
        self.copy_bytes(offset, source, source_offset, head)?;
        self.share_sectors((offset + head) / SECTOR_U64, source, first..last);
        let done = head + whole;
        self.copy_bytes(offset + done, source, source_offset + done, len - done)?;
        Ok(len)
    }

    /// The first range of data (not hole) that ends after `offset`, cut at `offset` and at the size; `None` when
    /// only a hole or nothing follows.
    pub fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let layout = self.layout.read();
        let end = layout.size.div_ceil(SECTOR_U64);
        let written = |sector: u64| matches!(layout.map.segment(sector, end - sector), Segment::Written(_));
        let mut sector = offset / SECTOR_U64;
        while sector < end && !written(sector) {
            sector += layout.map.segment(sector, end - sector).len();
        }
        let first = sector;
        while sector < end && written(sector) {
            sector += layout.map.segment(sector, end - sector).len();
        }
        let range = (first * SECTOR_U64).max(offset)..(sector * SECTOR_U64).min(layout.size);
        (range.start < range.end).then_some(range)
    }

    /// The exclusive lock, and what everything under it needs.
    fn edit(&self) -> Edit<'_> {
        Edit { store: &self.store, layout: self.layout.write() }
    }

    fn write(&self, offset: u64, data: &[u8], claim: Claim) -> Result<(), StoreError> {
        if data.is_empty() {
            return Ok(());
        }
        let split = Split::new(offset, data.len());
        let mut writing = Writing { claim, buffers: self.store.buffers() };
        let (head, rest) = data.split_at(split.head);
        if !head.is_empty() {
            self.edit().write_edge(&mut writing, split.sector, split.skip, head)?;
        }
        let (body, tail) = rest.split_at(split.body);
        self.write_whole(&mut writing, split.body_sector(), body, tail)
    }

    /// Writes whole sectors from `sector` on, then `tail`, the beginning of one more.
    fn write_whole(
        &self,
        writing: &mut Writing,
        mut sector: u64,
        mut body: &[u8],
        tail: &[u8],
    ) -> Result<(), StoreError> {
        while !body.is_empty() {
            let written = self.overwrite(writing, sector, body)?;
            let written = if written > 0 { written } else { self.write_new(writing, sector, body)? };
            sector += (written / SECTOR) as u64;
            body = &body[written..];
        }
        if tail.is_empty() {
            return Ok(());
        }
        self.edit().write_edge(writing, sector, 0, tail)
    }

    /// Overwrites the sectors at `sector` in place as far as they are written, not shared, and inside the size;
    /// returns the bytes done.
    fn overwrite(&self, writing: &mut Writing, sector: u64, body: &[u8]) -> Result<usize, StoreError> {
        let layout = self.layout.read();
        let inside = (layout.size / SECTOR_U64).saturating_sub(sector);
        let wanted = inside.min((body.len() / SECTOR).min(CHUNK_SECTORS) as u64);
        if wanted == 0 {
            return Ok(0);
        }
        match layout.map.segment(sector, wanted) {
            Segment::Written(extent) if !extent.shared => {
                let bytes = extent.len as usize * SECTOR;
                self.store.write_extent(&extent, &body[..bytes], &mut writing.buffers.cipher)?;
                Ok(bytes)
            }
            _ => Ok(0),
        }
    }

    /// Writes sectors that need a new place (holes, shared sectors), a first writing (reserved ones) or a new size;
    /// returns the bytes done.
    fn write_new(&self, writing: &mut Writing, sector: u64, body: &[u8]) -> Result<usize, StoreError> {
        let Writing { claim, ref mut buffers } = *writing;
        let wanted = (body.len() / SECTOR).min(CHUNK_SECTORS) as u64;
        let mut edit = self.edit();
        let segment = edit.layout.map.segment(sector, wanted);
        let bytes = segment.len() as usize * SECTOR;
        let has_place = !matches!(segment, Segment::Hole(_) | Segment::Written(Extent { shared: true, .. }));
        if has_place {
            edit.replace_sectors(sector, segment, &body[..bytes], &mut buffers.cipher, claim)?;
            edit.grow(sector, bytes);
            return Ok(bytes);
        }
        let lease = edit.lease(segment.len() as u32)?;
        drop(edit);
        let extent = self.store.place(&lease, &body[..bytes], &mut buffers.cipher, claim)?;
        let bytes = extent.len as usize * SECTOR;
        let mut edit = self.edit();
        edit.map_at(sector, extent);
        edit.grow(sector, bytes);
        Ok(bytes)
    }

    /// Copies bytes through a buffer.
    fn copy_bytes(
        &self,
        mut offset: u64,
        source: &Content,
        mut source_offset: u64,
        mut len: u64,
    ) -> Result<(), StoreError> {
        if len == 0 {
            return Ok(());
        }
        let mut buf = zeroize::Zeroizing::new(vec![0; len.min((CHUNK_SECTORS * SECTOR) as u64) as usize]);
        while len > 0 {
            let step = len.min(buf.len() as u64) as usize;
            let read = source.read_at(source_offset, &mut buf[..step])?;
            // The source may have been cut meanwhile: what is gone reads as zeros.
            buf[read..step].fill(0);
            self.write_at(offset, &buf[..step])?;
            (offset, source_offset, len) = (offset + step as u64, source_offset + step as u64, len - step as u64);
        }
        Ok(())
    }

    /// Makes the sectors of `source` appear at `sector` too, without copying.
    fn share_sectors(&self, sector: u64, source: &Content, range: Range<u64>) {
        debug_assert!(Arc::ptr_eq(&self.store, &source.store), "extents are places in one store");
        let shared = source.edit().share(range.clone());
        let mut edit = self.edit();
        let sectors = range.end - range.start;
        edit.unmap_keep_slot(sector..sector + sectors);
        for (at, extent) in shared {
            edit.map_at(sector + (at - range.start), extent);
        }
        edit.layout.size = edit.layout.size.max((sector + sectors) * SECTOR_U64);
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.edit().clear();
    }
}

#[cfg(debug_assertions)]
impl Content {
    /// Asserts the invariants of the layout, which need no store; returns the bytes of memory its map counts as.
    pub fn check(&self) -> u64 {
        self.layout.read().check()
    }
}
