//! Requests by opcode: what a workload costs in round trips.

use std::sync::atomic::{AtomicU64, Ordering};

use super::dispatch::{NAMES, Opcode};

/// One counter per opcode, since the mount was made.
pub(super) struct Counters([AtomicU64; NAMES.len()]);

impl Counters {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; NAMES.len()])
    }

    pub(super) fn count(&self, opcode: Opcode) {
        self.0[opcode as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Opcodes seen at least once, with their counts.
    pub(super) fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.iter().map(|counter| counter.load(Ordering::Relaxed));
        NAMES.iter().copied().zip(counts).filter(|&(_, count)| count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stand_under_the_name_of_their_opcode() {
        let counters = Counters::new();
        counters.count(Opcode::Lookup);
        counters.count(Opcode::CopyFileRange);
        counters.count(Opcode::CopyFileRange);
        assert_eq!(counters.snapshot(), [("LOOKUP", 1), ("COPY_FILE_RANGE", 2)]);
    }
}
