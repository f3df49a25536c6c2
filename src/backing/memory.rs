//! Arenas in memory, for tests and benchmarks that must not touch a disk.

use std::io;

use parking_lot::RwLock;

use super::Backing;

/// Arenas in memory. `discard` zeroes; nothing is ever given back.
pub struct MemoryBacking {
    arenas: Vec<RwLock<Vec<u8>>>,
}

impl MemoryBacking {
    /// This many empty arenas.
    pub fn new(arenas: u32) -> Self {
        Self { arenas: (0..arenas).map(|_| RwLock::default()).collect() }
    }

    /// The bytes of all arenas, one after the other: what an attacker would find on the disk.
    pub fn image(&self) -> Vec<u8> {
        self.arenas.iter().flat_map(|arena| arena.read().clone()).collect()
    }

    fn arena(&self, arena: u32) -> &RwLock<Vec<u8>> {
        &self.arenas[arena as usize]
    }
}

impl Backing for MemoryBacking {
    fn arenas(&self) -> u32 {
        self.arenas.len() as u32
    }

    fn read_at(&self, arena: u32, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.arena(arena).read();
        let start = (offset as usize).min(bytes.len());
        let there = buf.len().min(bytes.len() - start);
        buf[..there].copy_from_slice(&bytes[start..start + there]);
        buf[there..].fill(0);
        Ok(())
    }

    fn write_at(&self, arena: u32, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.arena(arena).write();
        let (start, end) = (offset as usize, offset as usize + buf.len());
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(buf);
        Ok(())
    }

    fn discard(&self, arena: u32, offset: u64, len: u64) -> io::Result<()> {
        let mut bytes = self.arena(arena).write();
        let end = ((offset + len) as usize).min(bytes.len());
        let start = (offset as usize).min(end);
        bytes[start..end].fill(0);
        Ok(())
    }

    fn set_aside(&self, _: u32, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn available(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}
