//! Where the bytes of a content lie, and how that changes: the part of a [`super::Content`] behind its lock.

use std::ops::Range;

use super::buffer::{BufferLease, WorkBuffers};
use super::extent::{Extent, ExtentMap, Segment};
use super::space::Claim;
use super::{SlotLease, Store, StoreError};
use crate::crypt::SlotId;
use crate::sync::{WriteGuard, rank};
use crate::units::{SECTOR, SECTOR_U64};

/// Sectors one key slot encrypts before the content takes a new one: 2^28 sectors are 2^36 AES blocks, the
/// key scope IEEE 1619 recommends not to exceed.
const SLOT_SECTORS: u32 = 1 << 28;

/// What one write works with.
pub(super) struct Writing<'a> {
    pub claim: Claim,
    pub buffers: BufferLease<'a>,
}

/// Invariants: bytes of a mapped sector behind `size` are zero; no written sector lies wholly behind `size`;
/// `sectors` is the number of mapped sectors; every written sector holds one reference to its key slot.
#[derive(Default)]
pub(super) struct Layout {
    pub size: u64,
    pub sectors: u64,
    pub map: ExtentMap,
    /// Key slot for new sectors, on which the content holds one reference of its own.
    slot: Option<SlotId>,
    /// Sectors encrypted under `slot` so far.
    slot_sectors: u32,
}

/// A layout under its exclusive lock, and the store it lies in: every change of it is a method here.
pub(super) struct Edit<'a> {
    pub store: &'a Store,
    pub layout: WriteGuard<'a, { rank::LAYOUT }, Layout>,
}

impl Layout {
    /// Fills `buf[..length]` from `offset`; `buf` behind that may be used as working space.
    pub fn read(&self, store: &Store, offset: u64, length: usize, buf: &mut [u8]) -> Result<(), StoreError> {
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
}

impl<'a> Edit<'a> {
    /// Writes part of one sector: `data` from byte `skip` on.
    pub fn write_edge(
        &mut self,
        writing: &mut Writing,
        sector: u64,
        skip: usize,
        data: &[u8],
    ) -> Result<(), StoreError> {
        let start = sector * SECTOR_U64;
        let end = start + (skip + data.len()) as u64;
        let old = self.layout.map.segment(sector, 1);
        let keeps_bytes = (skip > 0 && start < self.layout.size) || end < self.layout.size;
        let WorkBuffers { cipher, plain } = &mut *writing.buffers;
        match old {
            Segment::Written(extent) if keeps_bytes => self.store.read_extent(&extent, &mut plain[..])?,
            _ => plain.fill(0),
        }
        plain[skip..skip + data.len()].copy_from_slice(data);
        self.replace_sectors(sector, old, &plain[..], cipher, writing.claim)?;
        self.layout.size = self.layout.size.max(end);
        Ok(())
    }

    /// Zeroes `start..end`, which lie in one sector, if that sector is written; an empty range does nothing.
    pub fn zero_part(&mut self, start: u64, end: u64) -> Result<(), StoreError> {
        if start >= end {
            return Ok(());
        }
        let sector = start / SECTOR_U64;
        let old @ Segment::Written(extent) = self.layout.map.segment(sector, 1) else { return Ok(()) };
        let mut buffers = self.store.buffers();
        let WorkBuffers { cipher, plain } = &mut *buffers;
        self.store.read_extent(&extent, &mut plain[..])?;
        let base = sector * SECTOR_U64;
        plain[(start - base) as usize..(end - base) as usize].fill(0);
        // Making less of something must not fail for want of a sector.
        self.replace_sectors(sector, old, &plain[..], cipher, Claim::Headroom)
    }

    /// Gives the sectors of one segment (at most a chunk; one sector where a new place is needed) new bytes.
    pub fn replace_sectors(
        &mut self,
        sector: u64,
        old: Segment,
        plain: &[u8],
        cipher: &mut [u8],
        claim: Claim,
    ) -> Result<(), StoreError> {
        match old {
            Segment::Written(extent) if !extent.shared => self.store.write_extent(&extent, plain, cipher),
            Segment::Reserved(reserved) => {
                self.store.check_metadata(claim)?;
                self.write_reserved(sector, reserved, plain, cipher)
            }
            _ => {
                let lease = self.lease(1)?;
                let extent = self.store.place(&lease, plain, cipher, claim)?;
                self.map_at(sector, extent);
                Ok(())
            }
        }
    }

    /// Writes into space that was reserved, which cannot run out.
    fn write_reserved(
        &mut self,
        sector: u64,
        reserved: Extent,
        plain: &[u8],
        cipher: &mut [u8],
    ) -> Result<(), StoreError> {
        let lease = self.lease(reserved.len)?;
        let extent = self.store.fill(&lease, reserved, plain, cipher)?;
        // The place stays charged and allocated: it only changes from reserved to written.
        self.remap(|map| map.insert(sector, extent, &mut Vec::new()));
        Ok(())
    }

    /// The slot for `sectors` new sectors, with a reference for the time of the writing.
    pub fn lease(&mut self, sectors: u32) -> Result<SlotLease<'a>, StoreError> {
        if self.layout.slot.is_some() && self.layout.slot_sectors > SLOT_SECTORS - sectors.min(SLOT_SECTORS) {
            self.drop_slot();
        }
        let slot = match self.layout.slot {
            Some(slot) => slot,
            None => {
                let slot = self.store.take_slot()?;
                (self.layout.slot, self.layout.slot_sectors) = (Some(slot), 0);
                slot
            }
        };
        self.layout.slot_sectors += sectors;
        Ok(self.store.lease(slot))
    }

    /// Gives the content's own reference to its slot back; written sectors keep theirs.
    fn drop_slot(&mut self) {
        if let Some(slot) = self.layout.slot.take() {
            self.store.release_slot(slot, 1);
        }
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        let extents = self.remap(ExtentMap::take_all);
        self.release(&extents);
        self.drop_slot();
    }

    /// Marks the written sectors of a range as shared and takes one more reference to each; returns them.
    pub fn share(&mut self, range: Range<u64>) -> Vec<(u64, Extent)> {
        let (mut found, mut sector) = (Vec::new(), range.start);
        while sector < range.end {
            let segment = self.layout.map.segment(sector, range.end - sector);
            if let Segment::Written(extent) = segment {
                let extent = Extent { shared: true, ..extent };
                self.store.share(&extent);
                found.push((sector, extent));
            }
            sector += segment.len();
        }
        // Same places, so nothing is released: only the mark is new.
        self.remap(|map| found.iter().for_each(|(at, extent)| map.insert(*at, *extent, &mut Vec::new())));
        found
    }

    /// Changes the map, and counts what it takes.
    fn remap<T>(&mut self, change: impl FnOnce(&mut ExtentMap) -> T) -> T {
        let before = self.layout.map.memory();
        let result = change(&mut self.layout.map);
        self.store.metadata().settle(before, self.layout.map.memory());
        result
    }

    pub fn map_at(&mut self, sector: u64, extent: Extent) {
        let mut removed = Vec::new();
        self.remap(|map| map.insert(sector, extent, &mut removed));
        self.layout.sectors += u64::from(extent.len);
        self.release(&removed);
    }

    pub fn unmap_keep_slot(&mut self, range: Range<u64>) {
        let mut removed = Vec::new();
        self.remap(|map| map.remove(range, &mut removed));
        self.release(&removed);
    }

    pub fn unmap(&mut self, range: Range<u64>) {
        self.unmap_keep_slot(range);
        if self.layout.map.is_empty() {
            self.drop_slot();
        }
    }

    fn release(&mut self, removed: &[Extent]) {
        self.layout.sectors -= removed.iter().map(|extent| u64::from(extent.len)).sum::<u64>();
        self.store.release(removed);
    }

    pub fn grow(&mut self, sector: u64, bytes: usize) {
        self.layout.size = self.layout.size.max(sector * SECTOR_U64 + bytes as u64);
    }
}

#[cfg(debug_assertions)]
impl Layout {
    /// Asserts what can be seen without reading.
    pub fn check(&self) -> u64 {
        let (sectors, written) = self.map.check();
        assert_eq!(self.sectors, sectors, "sectors counted and sectors mapped");
        let size = self.size.div_ceil(SECTOR_U64);
        assert!(written <= size, "sector {written} is written, the size ends in sector {size}");
        assert!(self.slot_sectors <= SLOT_SECTORS, "{} sectors under one key", self.slot_sectors);
        self.map.memory()
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
