//! The bytes of one file.
//!
//! Locking: one `RwLock` per content, never held while another content's lock is taken. Under the shared lock run
//! reads, and overwrites of whole sectors in place: they change no mapping, and XTS keeps a read that meets an
//! overwrite to a mix of old and new 16-byte blocks, as a plain file system would. Under the exclusive lock runs
//! everything that changes the mapping or the size, and every change of part of a sector. New sectors are encrypted
//! and written before they are mapped, outside the lock.

use std::ops::Range;

use parking_lot::RwLock;

use super::buffer::{Buffers, CHUNK_SECTORS, Lease};
use super::extent::{Extent, ExtentMap, Segment};
use super::range::{Split, whole_sectors};
use super::space::Claim;
use super::{Store, StoreError};
use crate::crypt::SlotId;
use crate::units::{SECTOR, SECTOR_U64};

/// Sectors one key slot encrypts before the content takes a new one: 2^28 sectors are 2^36 AES blocks, the
/// key scope IEEE 1619 recommends not to exceed.
const SLOT_SECTORS: u32 = 1 << 28;

/// The bytes of one file: a sparse array of up to 2^63-1 bytes with its own lock and its own key slot.
///
/// Bytes never written read as zeros. All methods may be called from several threads at once. A content does not
/// know its store (to stay small): pass the same one each time, and call [`Content::clear`] before dropping.
#[derive(Default)]
pub struct Content {
    inner: RwLock<Inner>,
}

/// What one write works with.
struct Writing<'a> {
    claim: Claim,
    buffers: Lease<'a>,
}

/// Invariants: bytes of a mapped sector behind `size` are zero; no written sector lies wholly behind `size`;
/// `sectors` is the number of mapped sectors; every written sector holds one reference to its key slot.
#[derive(Default)]
struct Inner {
    size: u64,
    sectors: u64,
    map: ExtentMap,
    /// Key slot for new sectors, on which the content holds one reference of its own.
    slot: Option<SlotId>,
    /// Sectors encrypted under `slot` so far.
    slot_sectors: u32,
}

impl Content {
    /// No bytes, no space, no key.
    pub fn new() -> Self {
        Self::default()
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.inner.read().size
    }

    /// Sectors allocated.
    pub fn sectors(&self) -> u64 {
        self.inner.read().sectors
    }

    /// Whether space is reserved in it that is not written yet.
    pub fn has_reserved(&self) -> bool {
        self.inner.read().map.has_reserved()
    }

    /// Reads at `offset` up to the end of `buf` or of the content; returns the bytes read.
    pub fn read_at(&self, store: &Store, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let inner = self.inner.read();
        let length = (buf.len() as u64).min(inner.size.saturating_sub(offset)) as usize;
        inner.read(store, offset, length, buf)?;
        Ok(length)
    }

    /// Writes all of `data` at `offset`, growing the content as needed. After an error the parts before the failed
    /// one may have been written, and the size covers no more than what was.
    pub fn write_at(&self, store: &Store, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.write(store, offset, data, Claim::Limit)
    }

    /// As [`Content::write_at`], for data somebody was told is written: it may take the headroom too.
    pub fn write_back_at(&self, store: &Store, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.write(store, offset, data, Claim::Headroom)
    }

    /// Sets the size: truncates, or extends with zeros without taking space.
    pub fn set_size(&self, store: &Store, size: u64) -> Result<(), StoreError> {
        let mut inner = self.inner.write();
        if size <= inner.size {
            inner.zero_part(store, size, size.next_multiple_of(SECTOR_U64))?;
            inner.unmap(store, size.div_ceil(SECTOR_U64)..u64::MAX);
        }
        inner.size = size;
        Ok(())
    }

    /// Reserves space for a range (`fallocate(2)` mode 0); grows the size unless `keep_size`. What was reserved
    /// before an error stays reserved.
    pub fn allocate(&self, store: &Store, offset: u64, len: u64, keep_size: bool) -> Result<(), StoreError> {
        let mut inner = self.inner.write();
        let end = offset + len;
        let (mut sector, last) = (offset / SECTOR_U64, end.div_ceil(SECTOR_U64));
        while sector < last {
            let segment = inner.map.segment(sector, last - sector);
            sector += match segment {
                Segment::Hole(missing) => {
                    let extent = store.reserve(missing)?;
                    inner.map_at(store, sector, extent);
                    u64::from(extent.len)
                }
                present => present.len(),
            };
        }
        if !keep_size {
            inner.size = inner.size.max(end);
        }
        Ok(())
    }

    /// Turns a range into a hole (`FALLOC_FL_PUNCH_HOLE`); the size stays.
    ///
    /// # Errors
    /// As for writing: a hole in the middle makes two extents of one.
    pub fn punch(&self, store: &Store, offset: u64, len: u64) -> Result<(), StoreError> {
        store.check_metadata(Claim::Limit)?;
        let mut inner = self.inner.write();
        let end = offset.saturating_add(len);
        let (first, last) = whole_sectors(offset, end);
        if first > last {
            return inner.zero_part(store, offset, end);
        }
        inner.zero_part(store, offset, first * SECTOR_U64)?;
        inner.zero_part(store, last * SECTOR_U64, end)?;
        inner.unmap(store, first..last);
        Ok(())
    }

    /// Copies a range of `source`, which may be `self` if the ranges do not overlap, sharing whole sectors where
    /// both offsets are equally aligned; returns the bytes copied, short only at the end of `source`.
    pub fn copy_from(
        &self,
        store: &Store,
        offset: u64,
        source: &Content,
        source_offset: u64,
        len: u64,
    ) -> Result<u64, StoreError> {
        let len = len.min(source.size().saturating_sub(source_offset));
        let aligned = offset % SECTOR_U64 == source_offset % SECTOR_U64;
        let (first, last) = whole_sectors(source_offset, source_offset + len);
        if !aligned || first >= last {
            self.copy_bytes(store, offset, source, source_offset, len)?;
            return Ok(len);
        }
        store.check_metadata(Claim::Limit)?;
        let (head, whole) = (first * SECTOR_U64 - source_offset, (last - first) * SECTOR_U64);
        self.copy_bytes(store, offset, source, source_offset, head)?;
        self.share_sectors(store, (offset + head) / SECTOR_U64, source, first..last);
        let done = head + whole;
        self.copy_bytes(store, offset + done, source, source_offset + done, len - done)?;
        Ok(len)
    }

    /// The first range of data (not hole) that ends after `offset`, cut at `offset` and at the size; `None` when
    /// only a hole or nothing follows.
    pub fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let inner = self.inner.read();
        let end = inner.size.div_ceil(SECTOR_U64);
        let written = |sector: u64| matches!(inner.map.segment(sector, end - sector), Segment::Written(_));
        let mut sector = offset / SECTOR_U64;
        while sector < end && !written(sector) {
            sector += inner.map.segment(sector, end - sector).len();
        }
        let first = sector;
        while sector < end && written(sector) {
            sector += inner.map.segment(sector, end - sector).len();
        }
        let range = (first * SECTOR_U64).max(offset)..(sector * SECTOR_U64).min(inner.size);
        (range.start < range.end).then_some(range)
    }

    /// Gives back all space and the key slot; size becomes 0.
    pub fn clear(&self, store: &Store) {
        let mut inner = self.inner.write();
        inner.size = 0;
        inner.sectors = 0;
        let extents = inner.remap(store, ExtentMap::take_all);
        store.release(&extents);
        inner.drop_slot(store);
    }

    fn write(&self, store: &Store, offset: u64, data: &[u8], claim: Claim) -> Result<(), StoreError> {
        if data.is_empty() {
            return Ok(());
        }
        let split = Split::new(offset, data.len());
        let mut writing = Writing { claim, buffers: store.buffers.take() };
        let (head, rest) = data.split_at(split.head);
        if !head.is_empty() {
            self.inner.write().write_edge(store, &mut writing, split.sector, split.skip, head)?;
        }
        let (body, tail) = rest.split_at(split.body);
        self.write_whole(store, &mut writing, split.body_sector(), body, tail)
    }

    /// Writes whole sectors from `sector` on, then `tail`, the beginning of one more.
    fn write_whole(
        &self,
        store: &Store,
        writing: &mut Writing,
        mut sector: u64,
        mut body: &[u8],
        tail: &[u8],
    ) -> Result<(), StoreError> {
        while !body.is_empty() {
            let written = self.overwrite(store, writing, sector, body)?;
            let written = if written > 0 { written } else { self.write_new(store, writing, sector, body)? };
            sector += (written / SECTOR) as u64;
            body = &body[written..];
        }
        if tail.is_empty() {
            return Ok(());
        }
        self.inner.write().write_edge(store, writing, sector, 0, tail)
    }

    /// Overwrites the sectors at `sector` in place as far as they are written, not shared, and inside the size;
    /// returns the bytes done.
    fn overwrite(&self, store: &Store, writing: &mut Writing, sector: u64, body: &[u8]) -> Result<usize, StoreError> {
        let inner = self.inner.read();
        let inside = (inner.size / SECTOR_U64).saturating_sub(sector);
        let wanted = inside.min((body.len() / SECTOR).min(CHUNK_SECTORS) as u64);
        if wanted == 0 {
            return Ok(0);
        }
        match inner.map.segment(sector, wanted) {
            Segment::Written(extent) if !extent.shared => {
                let bytes = extent.len as usize * SECTOR;
                store.write_extent(&extent, &body[..bytes], &mut writing.buffers.cipher)?;
                Ok(bytes)
            }
            _ => Ok(0),
        }
    }

    /// Writes sectors that need a new place (holes, shared sectors), a first writing (reserved ones) or a new size;
    /// returns the bytes done.
    fn write_new(&self, store: &Store, writing: &mut Writing, sector: u64, body: &[u8]) -> Result<usize, StoreError> {
        let Writing { claim, ref mut buffers } = *writing;
        let wanted = (body.len() / SECTOR).min(CHUNK_SECTORS) as u64;
        let mut inner = self.inner.write();
        let segment = inner.map.segment(sector, wanted);
        let bytes = segment.len() as usize * SECTOR;
        let has_place = !matches!(segment, Segment::Hole(_) | Segment::Written(Extent { shared: true, .. }));
        if has_place {
            inner.replace_sectors(store, sector, segment, &body[..bytes], &mut buffers.cipher, claim)?;
            inner.grow(sector, bytes);
            return Ok(bytes);
        }
        let slot = inner.lease_slot(store, segment.len() as u32)?;
        drop(inner);
        // The slot cannot die meanwhile: `lease_slot` took a reference that is given back below.
        let placed = store.place(slot, &body[..bytes], &mut buffers.cipher, claim);
        let done = placed.map(|extent| {
            let mut inner = self.inner.write();
            inner.map_at(store, sector, extent);
            inner.grow(sector, extent.len as usize * SECTOR);
            extent.len as usize * SECTOR
        });
        store.keyring.release(slot, 1);
        done
    }

    /// Copies bytes through a buffer.
    fn copy_bytes(
        &self,
        store: &Store,
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
            let read = source.read_at(store, source_offset, &mut buf[..step])?;
            // The source may have been cut meanwhile: what is gone reads as zeros.
            buf[read..step].fill(0);
            self.write_at(store, offset, &buf[..step])?;
            (offset, source_offset, len) = (offset + step as u64, source_offset + step as u64, len - step as u64);
        }
        Ok(())
    }

    /// Makes the sectors of `source` appear at `sector` too, without copying.
    fn share_sectors(&self, store: &Store, sector: u64, source: &Content, range: Range<u64>) {
        let shared = source.inner.write().share(store, range.clone());
        let mut inner = self.inner.write();
        let sectors = range.end - range.start;
        inner.unmap_keep_slot(store, sector..sector + sectors);
        for (at, extent) in shared {
            inner.map_at(store, sector + (at - range.start), extent);
        }
        inner.size = inner.size.max((sector + sectors) * SECTOR_U64);
    }
}

impl Inner {
    /// Fills `buf[..length]` from `offset`; `buf` behind that may be used as working space.
    fn read(&self, store: &Store, offset: u64, length: usize, buf: &mut [u8]) -> Result<(), StoreError> {
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let (sector, skip) = (at / SECTOR_U64, (at % SECTOR_U64) as usize);
            let sectors = (skip + length - done).div_ceil(SECTOR) as u64;
            let segment = self.map.segment(sector, sectors);
            let bytes = (segment.len() as usize * SECTOR - skip).min(length - done);
            let step = match segment {
                Segment::Hole(_) | Segment::Reserved(_) => {
                    buf[done..done + bytes].fill(0);
                    bytes
                }
                Segment::Written(extent) => read_written(store, extent, skip, bytes, &mut buf[done..])?,
            };
            done += step;
        }
        Ok(())
    }

    /// Writes part of one sector: `data` from byte `skip` on.
    fn write_edge(
        &mut self,
        store: &Store,
        writing: &mut Writing,
        sector: u64,
        skip: usize,
        data: &[u8],
    ) -> Result<(), StoreError> {
        let start = sector * SECTOR_U64;
        let end = start + (skip + data.len()) as u64;
        let old = self.map.segment(sector, 1);
        let keeps_bytes = (skip > 0 && start < self.size) || end < self.size;
        let Buffers { cipher, plain } = &mut *writing.buffers;
        match old {
            Segment::Written(extent) if keeps_bytes => store.read_extent(&extent, &mut plain[..])?,
            _ => plain.fill(0),
        }
        plain[skip..skip + data.len()].copy_from_slice(data);
        self.replace_sectors(store, sector, old, &plain[..], cipher, writing.claim)?;
        self.size = self.size.max(end);
        Ok(())
    }

    /// Zeroes `start..end`, which lie in one sector, if that sector is written; an empty range does nothing.
    fn zero_part(&mut self, store: &Store, start: u64, end: u64) -> Result<(), StoreError> {
        if start >= end {
            return Ok(());
        }
        let sector = start / SECTOR_U64;
        let old @ Segment::Written(extent) = self.map.segment(sector, 1) else { return Ok(()) };
        let mut buffers = store.buffers.take();
        let Buffers { cipher, plain } = &mut *buffers;
        store.read_extent(&extent, &mut plain[..])?;
        let base = sector * SECTOR_U64;
        plain[(start - base) as usize..(end - base) as usize].fill(0);
        // Making less of something must not fail for want of a sector.
        self.replace_sectors(store, sector, old, &plain[..], cipher, Claim::Headroom)
    }

    /// Gives the sectors of one segment (at most a chunk; one sector where a new place is needed) new bytes.
    fn replace_sectors(
        &mut self,
        store: &Store,
        sector: u64,
        old: Segment,
        plain: &[u8],
        cipher: &mut [u8],
        claim: Claim,
    ) -> Result<(), StoreError> {
        match old {
            Segment::Written(extent) if !extent.shared => store.write_extent(&extent, plain, cipher),
            Segment::Reserved(reserved) => {
                store.check_metadata(claim)?;
                self.write_reserved(store, sector, reserved, plain, cipher)
            }
            _ => {
                let slot = self.lease_slot(store, 1)?;
                let placed = store.place(slot, plain, cipher, claim);
                let done = placed.map(|extent| self.map_at(store, sector, extent));
                store.keyring.release(slot, 1);
                done
            }
        }
    }

    /// Writes into space that was reserved, which cannot run out.
    fn write_reserved(
        &mut self,
        store: &Store,
        sector: u64,
        reserved: Extent,
        plain: &[u8],
        cipher: &mut [u8],
    ) -> Result<(), StoreError> {
        let slot = self.lease_slot(store, reserved.len)?;
        let seq = store.space.sequence(reserved.arena, u64::from(reserved.len));
        let extent = Extent { seq, slot, ..reserved };
        let written = store.write_extent(&extent, plain, cipher);
        if written.is_ok() {
            store.keyring.retain(slot, extent.len);
            // The place stays charged and allocated: it only changes from reserved to written.
            self.remap(store, |map| map.insert(sector, extent, &mut Vec::new()));
        }
        store.keyring.release(slot, 1);
        written
    }

    /// The slot for `sectors` new sectors, with a reference for the time of the writing.
    fn lease_slot(&mut self, store: &Store, sectors: u32) -> Result<SlotId, StoreError> {
        if self.slot.is_some() && self.slot_sectors > SLOT_SECTORS - sectors.min(SLOT_SECTORS) {
            self.drop_slot(store);
        }
        let slot = match self.slot {
            Some(slot) => slot,
            None => {
                let slot = store.keyring.acquire()?;
                (self.slot, self.slot_sectors) = (Some(slot), 0);
                slot
            }
        };
        self.slot_sectors += sectors;
        store.keyring.retain(slot, 1);
        Ok(slot)
    }

    /// Gives the content's own reference to its slot back; written sectors keep theirs.
    fn drop_slot(&mut self, store: &Store) {
        if let Some(slot) = self.slot.take() {
            store.keyring.release(slot, 1);
        }
    }

    /// Marks the written sectors of a range as shared and takes one more reference to each; returns them.
    fn share(&mut self, store: &Store, range: Range<u64>) -> Vec<(u64, Extent)> {
        let (mut found, mut sector) = (Vec::new(), range.start);
        while sector < range.end {
            let segment = self.map.segment(sector, range.end - sector);
            if let Segment::Written(extent) = segment {
                let extent = Extent { shared: true, ..extent };
                store.space.share(&extent);
                found.push((sector, extent));
            }
            sector += segment.len();
        }
        // Same places, so nothing is released: only the mark is new.
        self.remap(store, |map| found.iter().for_each(|(at, extent)| map.insert(*at, *extent, &mut Vec::new())));
        found
    }

    /// Changes the map, and counts what it takes.
    fn remap<T>(&mut self, store: &Store, change: impl FnOnce(&mut ExtentMap) -> T) -> T {
        let before = self.map.memory();
        let result = change(&mut self.map);
        store.metadata.settle(before, self.map.memory());
        result
    }

    fn map_at(&mut self, store: &Store, sector: u64, extent: Extent) {
        let mut removed = Vec::new();
        self.remap(store, |map| map.insert(sector, extent, &mut removed));
        self.sectors += u64::from(extent.len);
        self.release(store, &removed);
    }

    fn unmap_keep_slot(&mut self, store: &Store, range: Range<u64>) {
        let mut removed = Vec::new();
        self.remap(store, |map| map.remove(range, &mut removed));
        self.release(store, &removed);
    }

    fn unmap(&mut self, store: &Store, range: Range<u64>) {
        self.unmap_keep_slot(store, range);
        if self.map.is_empty() {
            self.drop_slot(store);
        }
    }

    fn release(&mut self, store: &Store, removed: &[Extent]) {
        self.sectors -= removed.iter().map(|extent| u64::from(extent.len)).sum::<u64>();
        store.release(removed);
    }

    fn grow(&mut self, sector: u64, bytes: usize) {
        self.size = self.size.max(sector * SECTOR_U64 + bytes as u64);
    }
}

/// Reads `bytes` bytes behind the first `skip` of an extent to the front of `buf`; may do less than asked, never
/// nothing. Whole sectors are decrypted in `buf` itself, also a partial last one if `buf` has room for all of it.
fn read_written(store: &Store, extent: Extent, skip: usize, bytes: usize, buf: &mut [u8]) -> Result<usize, StoreError> {
    let direct = if bytes.next_multiple_of(SECTOR) <= buf.len() { bytes.div_ceil(SECTOR) } else { bytes / SECTOR };
    if skip == 0 && direct > 0 {
        store.read_extent(&extent.slice(0, direct as u64), &mut buf[..direct * SECTOR])?;
        return Ok(bytes.min(direct * SECTOR));
    }
    let mut buffers = store.buffers.take();
    store.read_extent(&extent.slice(0, 1), &mut buffers.plain[..])?;
    let part = bytes.min(SECTOR - skip);
    buf[..part].copy_from_slice(&buffers.plain[skip..skip + part]);
    Ok(part)
}
