//! Pure arithmetic: a byte range as a partial first sector, whole sectors, and a partial last sector.

use crate::units::{SECTOR, SECTOR_U64};

/// A byte range cut at sector boundaries. `head + body + tail` bytes are the whole range, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Sector the range starts in.
    pub sector: u64,
    /// Bytes of the first sector in front of the range; 0 if there is no partial head.
    pub skip: usize,
    /// Bytes in a first sector that is not covered from its start (it may also end early); 0 if none.
    pub head: usize,
    /// Bytes in whole sectors.
    pub body: usize,
    /// Bytes in a last sector that is covered from its start but not to its end; 0 if none.
    pub tail: usize,
}

impl Split {
    /// Cuts `offset .. offset + len`.
    pub fn new(offset: u64, len: usize) -> Self {
        let skip = (offset % SECTOR_U64) as usize;
        let head = if skip == 0 { 0 } else { len.min(SECTOR - skip) };
        let tail = (len - head) % SECTOR;
        Self { sector: offset / SECTOR_U64, skip, head, body: len - head - tail, tail }
    }

    /// First sector of the body (or of the tail, if there is no body).
    pub fn body_sector(&self) -> u64 {
        self.sector + u64::from(self.head > 0)
    }
}

/// The whole sectors inside a byte range, as first sector and end (exclusive; equal or less if there are none).
pub(super) fn whole_sectors(offset: u64, end: u64) -> (u64, u64) {
    (offset.div_ceil(SECTOR_U64), end / SECTOR_U64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_small_range_is_covered_once_and_in_order() {
        let interesting = [0usize, 1, 2, 4094, 4095];
        for sector in 0..3 {
            for skip in interesting {
                for len in (0..3).flat_map(|n| interesting.map(|l| n * SECTOR + l)) {
                    let offset = sector * SECTOR_U64 + skip as u64;
                    let split = Split::new(offset, len);
                    assert_eq!(split.head + split.body + split.tail, len);
                    assert_eq!(split.body % SECTOR, 0);
                    assert!(split.tail < SECTOR);
                    assert!(split.skip + split.head <= SECTOR);
                    assert_eq!(split.head > 0, skip > 0 && len > 0);
                    if split.body + split.tail > 0 {
                        assert_eq!(split.body_sector() * SECTOR_U64, offset + split.head as u64);
                    }
                }
            }
        }
    }

    #[test]
    fn whole_sectors_leave_the_edges_out() {
        assert_eq!(whole_sectors(0, 4096), (0, 1));
        assert_eq!(whole_sectors(1, 8192), (1, 2));
        assert_eq!(whole_sectors(1, 4095), (1, 0));
        assert_eq!(whole_sectors(4096, 8191), (1, 1));
    }
}
