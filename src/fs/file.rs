//! Regular files: bytes in and out.

use std::ops::Range;

use super::{Fallocate, FsError, Scratch, Time, WriteMode};
use crate::store::SizePolicy;

/// Largest size of a file: `off_t` ends there.
const MAX_SIZE: u64 = i64::MAX as u64;

impl Scratch {
    /// Reads at `offset` up to the end of `buf` or of the file; returns the bytes read.
    pub fn read(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let inode = self.inode(ino)?;
        let content = inode.content()?;
        self.losses.read(ino, offset..offset.saturating_add(buf.len() as u64));
        Ok(content.read_at(offset, buf)?)
    }

    /// Writes all of `data` at `offset`.
    pub fn write(&self, ino: u64, offset: u64, data: &[u8], mode: WriteMode) -> Result<(), FsError> {
        let inode = self.inode(ino)?;
        let content = inode.content()?;
        if data.is_empty() {
            return Ok(());
        }
        let range = offset..end(offset, data.len() as u64)?;
        let written = match mode.accepted {
            true => content.write_back_at(offset, data),
            false => content.write_at(offset, data),
        };
        match written {
            Ok(()) => self.losses.mend(ino, range),
            Err(error) => {
                self.losses.lose(ino, range);
                return Err(error.into());
            }
        }
        if !mode.keep_times {
            inode.meta().modified(Time::now());
        }
        Ok(())
    }

    /// Reserves, zeroes or frees a range (fallocate(2)).
    pub fn fallocate(&self, ino: u64, offset: u64, len: u64, mode: Fallocate) -> Result<(), FsError> {
        let inode = self.inode(ino)?;
        let content = inode.content()?;
        if len == 0 {
            return Err(FsError::Invalid);
        }
        let range = offset..end(offset, len)?;
        match mode {
            Fallocate::Allocate { keep_size } => content.allocate(offset, len, policy(keep_size))?,
            Fallocate::Punch => content.punch(offset, len)?,
            Fallocate::Zero { keep_size } => {
                content.punch(offset, len)?;
                content.allocate(offset, len, policy(keep_size))?;
            }
        }
        if !matches!(mode, Fallocate::Allocate { .. }) {
            self.losses.mend(ino, range);
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
        let (source, content) = (source.content()?, target.content()?);
        let len = len.min(source.size().saturating_sub(from_offset));
        if len == 0 {
            return Ok(0);
        }
        end(to_offset, len)?;
        if from == to && from_offset.abs_diff(to_offset) < len {
            return Err(FsError::Invalid);
        }
        self.losses.read(from, from_offset..from_offset + len);
        let range = to_offset..to_offset + len;
        let copied = content.copy_from(to_offset, source, from_offset, len);
        match copied {
            Ok(_) => self.losses.mend(to, range),
            Err(_) => self.losses.lose(to, range),
        }
        let copied = copied?;
        target.meta().modified(Time::now());
        Ok(copied)
    }

    /// Whether space is reserved in a file that is not written yet and can be, which takes memory.
    pub fn has_reserved(&self, ino: u64) -> bool {
        self.store.metadata().extents() > 0
            && self.inode(ino).is_ok_and(|inode| inode.content().is_ok_and(|content| content.has_reserved()))
    }

    /// Sectors that a file takes, reserved ones included; 0 for what is no file.
    pub fn allocated(&self, ino: u64) -> u64 {
        self.inode(ino).ok().and_then(|inode| Some(inode.content().ok()?.sectors())).unwrap_or(0)
    }

    /// First range of data that ends behind `offset`, cut at `offset`.
    pub fn next_data(&self, ino: u64, offset: u64) -> Result<Option<Range<u64>>, FsError> {
        let inode = self.inode(ino)?;
        Ok(inode.content()?.next_data(offset))
    }
}

fn policy(keep_size: bool) -> SizePolicy {
    if keep_size { SizePolicy::Keep } else { SizePolicy::Grow }
}

/// The end of a range, if a file may be that large.
pub(super) fn end(offset: u64, len: u64) -> Result<u64, FsError> {
    offset.checked_add(len).filter(|&end| end <= MAX_SIZE).ok_or(FsError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{CALLER, limited, scratch};
    use super::super::{Kind, ROOT, SetAttr};
    use super::*;
    use crate::store::StoreError;

    const PLAIN: WriteMode = WriteMode { keep_times: false, accepted: false };
    const OLD: Time = Time { secs: 1, nanos: 0 };

    fn contents(fs: &Scratch, ino: u64) -> Vec<u8> {
        let mut buf = vec![0xff; fs.attr(ino).size as usize + 10];
        let n = fs.read(ino, 0, &mut buf).unwrap();
        buf.truncate(n);
        buf
    }

    fn age(fs: &Scratch, ino: u64) {
        fs.inode(ino).unwrap().meta().modified(OLD);
    }

    // promise: S-11
    #[test]
    fn bytes_never_written_and_bytes_cut_off_read_as_zeros() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        fs.write(ino, 10_000, b"abc", PLAIN).unwrap();
        let mut expected = vec![0; 10_003];
        expected[10_000..].copy_from_slice(b"abc");
        assert_eq!(contents(&fs, ino), expected);
        assert_eq!(fs.attr(ino).blocks, 8);
        let resize = |size| fs.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
        resize(10_001);
        resize(10_010);
        expected.truncate(10_001);
        expected.resize(10_010, 0);
        assert_eq!(contents(&fs, ino), expected);
        assert_eq!(fs.read(ino, 1 << 40, &mut [0; 4]).unwrap(), 0);
        assert_eq!((resize(0).size, fs.store.usage().used), (0, 0));
    }

    #[test]
    fn writing_moves_times_unless_the_kernel_keeps_them() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        age(&fs, ino);
        fs.write(ino, 0, b"", PLAIN).unwrap();
        fs.write(ino, 0, b"x", WriteMode { keep_times: true, ..PLAIN }).unwrap();
        assert_eq!((fs.attr(ino).mtime, fs.attr(ino).ctime), (OLD, OLD));
        fs.write(ino, 0, b"x", PLAIN).unwrap();
        assert!(fs.attr(ino).mtime > OLD && fs.attr(ino).ctime > OLD);
    }

    #[test]
    fn sizes_end_where_off_t_does() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        let resize = |size| fs.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() });
        assert_eq!(resize(MAX_SIZE).unwrap().size, MAX_SIZE);
        assert!(matches!(resize(MAX_SIZE + 1), Err(FsError::TooLarge)));
        assert!(matches!(fs.write(ino, MAX_SIZE, b"x", PLAIN), Err(FsError::TooLarge)));
        assert!(matches!(fs.write(ino, u64::MAX, b"x", PLAIN), Err(FsError::TooLarge)));
        assert!(matches!(fs.fallocate(ino, MAX_SIZE, 1, Fallocate::Punch), Err(FsError::TooLarge)));
        fs.write(ino, MAX_SIZE - 1, b"x", PLAIN).unwrap();
        assert!(matches!(fs.copy_file_range(ino, MAX_SIZE - 1, ino, MAX_SIZE, 1), Err(FsError::TooLarge)));
    }

    #[test]
    fn only_files_have_contents() {
        let fs = scratch();
        let fifo = fs.mknod(ROOT, b"p", Kind::Fifo, 0o600, 0, &CALLER).unwrap().ino;
        let allocate = Fallocate::Allocate { keep_size: false };
        assert!(matches!(fs.read(ROOT, 0, &mut [0]), Err(FsError::IsDirectory)));
        assert!(matches!(fs.write(fifo, 0, b"x", PLAIN), Err(FsError::Invalid)));
        assert!(matches!(fs.fallocate(ROOT, 0, 1, allocate), Err(FsError::IsDirectory)));
        assert!(matches!(fs.next_data(fifo, 0), Err(FsError::Invalid)));
        let file = fs.file(ROOT, "f").ino;
        assert!(matches!(fs.copy_file_range(ROOT, 0, file, 0, 1), Err(FsError::IsDirectory)));
        assert!(matches!(fs.copy_file_range(file, 0, fifo, 0, 1), Err(FsError::Invalid)));
        assert!(matches!(fs.fallocate(file, 0, 0, allocate), Err(FsError::Invalid)));
    }

    // promise: S-12
    #[test]
    fn fallocate_reserves_punches_and_zeroes() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        let size_and_blocks = || (fs.attr(ino).size, fs.attr(ino).blocks);
        fs.fallocate(ino, 0, 8192, Fallocate::Allocate { keep_size: true }).unwrap();
        assert_eq!(size_and_blocks(), (0, 16));
        fs.fallocate(ino, 0, 5000, Fallocate::Allocate { keep_size: false }).unwrap();
        assert_eq!(size_and_blocks(), (5000, 16));
        fs.write(ino, 0, &[7; 8192], PLAIN).unwrap();
        fs.fallocate(ino, 4000, 4096 + 96, Fallocate::Punch).unwrap();
        assert_eq!(size_and_blocks(), (8192, 8));
        fs.fallocate(ino, 100, 8192, Fallocate::Zero { keep_size: false }).unwrap();
        assert_eq!(size_and_blocks(), (8292, 24));
        fs.fallocate(ino, 8000, 8192, Fallocate::Zero { keep_size: true }).unwrap();
        assert_eq!(size_and_blocks(), (8292, 32));
        let mut expected = vec![0; 8292];
        expected[..100].fill(7);
        assert_eq!(contents(&fs, ino), expected);
        age(&fs, ino);
        fs.fallocate(ino, 0, 1, Fallocate::Punch).unwrap();
        assert!(fs.attr(ino).mtime > OLD);
    }

    // promise: S-13
    #[test]
    fn ranges_are_copied_between_files_and_inside_one() {
        let fs = scratch();
        let (a, b) = (fs.file(ROOT, "a").ino, fs.file(ROOT, "b").ino);
        let data: Vec<u8> = (0..20_000).map(|i| (i % 251) as u8).collect();
        fs.write(a, 0, &data, PLAIN).unwrap();
        let used = fs.store.usage().used;
        assert_eq!(fs.copy_file_range(a, 0, b, 0, 16_384).unwrap(), 16_384);
        assert_eq!(fs.store.usage().used, used, "aligned ranges are shared");
        fs.write(a, 0, &[0; 100], PLAIN).unwrap();
        assert_eq!(contents(&fs, b), data[..16_384], "and independent");
        age(&fs, b);
        assert_eq!(fs.copy_file_range(a, 19_990, b, 5, 100).unwrap(), 10);
        assert!(fs.attr(b).mtime > OLD);
        assert_eq!(contents(&fs, b)[5..15], data[19_990..]);
        assert_eq!(fs.copy_file_range(a, 1 << 30, b, 0, 100).unwrap(), 0);
        assert_eq!(fs.copy_file_range(a, 10_000, a, 0, 10_000).unwrap(), 10_000);
        assert_eq!(contents(&fs, a), [&data[10_000..], &data[10_000..]].concat());
        assert!(matches!(fs.copy_file_range(a, 0, a, 9_999, 10_000), Err(FsError::Invalid)));
        assert!(matches!(fs.copy_file_range(a, 9_999, a, 0, 10_000), Err(FsError::Invalid)));
    }

    #[test]
    fn data_is_told_from_holes() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        fs.write(ino, 1 << 20, b"data", PLAIN).unwrap();
        let data = fs.next_data(ino, 0).unwrap().unwrap();
        assert!(data.start > 0 && data.start <= 1 << 20 && data.end == (1 << 20) + 4);
        assert_eq!(fs.next_data(ino, data.end).unwrap(), None);
    }

    // promise: S-30
    #[test]
    fn a_full_store_refuses_and_takes_again_after_deleting() {
        let fs = limited(64 * 4096, 1 << 20);
        let keep = fs.file(ROOT, "keep").ino;
        fs.write(keep, 0, &[1; 4096], PLAIN).unwrap();
        let big = fs.file(ROOT, "big").ino;
        let full = |result| matches!(result, Err(FsError::Store(StoreError::NoSpace)));
        assert!(full(fs.write(big, 0, &[2; 64 * 4096], PLAIN)));
        assert_eq!(contents(&fs, keep), [1; 4096]);
        fs.unlink(ROOT, b"big").unwrap();
        fs.forget(big, 1);
        assert_eq!(fs.statfs().sectors_free, 63);
        let again = fs.file(ROOT, "again").ino;
        fs.write(again, 0, &[3; 63 * 4096], PLAIN).unwrap();
        assert!(full(fs.fallocate(keep, 0, 8192, Fallocate::Allocate { keep_size: true })));
        assert_eq!(fs.statfs().sectors_free, 0);
    }

    #[test]
    fn replaced_files_and_the_whole_scratch_give_everything_back() {
        let fs = scratch();
        let store = fs.store.clone();
        for name in ["a", "b", "c"] {
            let ino = fs.file(ROOT, name).ino;
            fs.write(ino, 0, &[1; 10_000], PLAIN).unwrap();
            fs.forget(ino, 1);
        }
        fs.mv(ROOT, "a", ROOT, "b").unwrap();
        assert_eq!(store.usage().used, 6);
        drop(fs);
        assert_eq!((store.usage().used, store.keyring().live_slots()), (0, 0));
    }
}
