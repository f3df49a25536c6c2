//! Checksums of S3 objects: computed part by part, put together, compared.

use crc_fast::{CrcAlgorithm, Digest as Crc, checksum_combine};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::aws::{ChecksumAlgorithm, Object};
use crate::fs::{FsError, Scratch};

/// The full-object checksum that an object is compared with: the cheapest it has.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expected {
    /// It has none.
    Nothing,
    /// One that parts can be combined to, computed while they arrive.
    Crc(ChecksumAlgorithm, u64),
    /// One that needs the contents in order, computed from the scratch when all have arrived.
    Sha(ChecksumAlgorithm, Vec<u8>),
}

impl Expected {
    pub(super) fn of(object: &Object) -> Self {
        use ChecksumAlgorithm::{Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
        let value = |algorithm| Some(&object.checksums.iter().find(|sum| sum.algorithm == algorithm)?.value);
        for algorithm in [Crc64Nvme, Crc32c, Crc32] {
            if let Some(crc) = value(algorithm) {
                return Self::Crc(algorithm, crc.iter().fold(0, |crc, &byte| crc << 8 | u64::from(byte)));
            }
        }
        let sha = [Sha256, Sha1].into_iter().find_map(|algorithm| Some((algorithm, value(algorithm)?.clone())));
        sha.map_or(Self::Nothing, |(algorithm, sum)| Self::Sha(algorithm, sum))
    }

    /// What to feed with a part while it arrives.
    pub(super) fn digest(&self) -> Option<Crc> {
        match self {
            Self::Crc(algorithm, _) => Some(Crc::new(crc_of(*algorithm))),
            Self::Nothing | Self::Sha(..) => None,
        }
    }

    /// What to feed with all contents in order, in the end.
    pub(super) fn in_order(&self) -> Option<InOrder> {
        match self {
            Self::Sha(ChecksumAlgorithm::Sha1, _) => Some(InOrder::Sha1(Sha1::new())),
            Self::Sha(..) => Some(InOrder::Sha256(Sha256::new())),
            Self::Nothing | Self::Crc(..) => None,
        }
    }
}

/// A hash that cannot be combined.
pub(super) enum InOrder {
    Sha1(Sha1),
    Sha256(Sha256),
}

impl InOrder {
    pub(super) fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha1(hash) => hash.update(data),
            Self::Sha256(hash) => hash.update(data),
        }
    }

    pub(super) fn finish(self) -> Vec<u8> {
        match self {
            Self::Sha1(hash) => hash.finalize().to_vec(),
            Self::Sha256(hash) => hash.finalize().to_vec(),
        }
    }
}

/// CRC-64/NVME.
pub(super) fn crc64(data: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, data)
}

/// The CRC of the whole from those of its parts, each with its length.
pub(super) fn combined(algorithm: ChecksumAlgorithm, parts: impl IntoIterator<Item = (u64, u64)>) -> u64 {
    let join = |(whole, _), (crc, len)| (checksum_combine(crc_of(algorithm), whole, crc, len), len);
    parts.into_iter().reduce(join).map_or(0, |(whole, _)| whole)
}

fn crc_of(algorithm: ChecksumAlgorithm) -> CrcAlgorithm {
    match algorithm {
        ChecksumAlgorithm::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
        ChecksumAlgorithm::Crc32c => CrcAlgorithm::Crc32Iscsi,
        // The hashes have no CRC, and nobody asks for it.
        ChecksumAlgorithm::Crc64Nvme | ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256 => CrcAlgorithm::Crc64Nvme,
    }
}

/// SHA-256 of a file of the scratch, read through `buffer`.
pub(super) fn sha256(scratch: &Scratch, ino: u64, buffer: &mut [u8]) -> Result<[u8; 32], FsError> {
    let (mut hash, mut at) = (Sha256::new(), 0);
    loop {
        match scratch.read(ino, at, buffer)? {
            0 => return Ok(hash.finalize().into()),
            got => {
                hash.update(&buffer[..got]);
                at += got as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::Checksum;

    const CHECK: &[u8] = b"123456789";

    fn object(sums: &[(ChecksumAlgorithm, &[u8])]) -> Object {
        let checksums = sums.iter().map(|&(algorithm, value)| Checksum { algorithm, value: value.to_vec() }).collect();
        Object { checksums, ..Object::default() }
    }

    /// Check values of the catalogue of parametrised CRC algorithms.
    #[test]
    fn parts_combine_to_the_published_check_values() {
        use ChecksumAlgorithm::{Crc32, Crc32c, Crc64Nvme};
        for (algorithm, check) in [(Crc32, 0xcbf4_3926), (Crc32c, 0xe306_9283), (Crc64Nvme, 0xae8b_1486_0a79_9888)] {
            for cuts in [vec![9], vec![4, 5], vec![1, 0, 3, 5]] {
                let mut rest = CHECK;
                let parts = cuts.iter().map(|&len| {
                    let (part, after) = rest.split_at(len);
                    rest = after;
                    (crc_fast::checksum(crc_of(algorithm), part), len as u64)
                });
                assert_eq!(combined(algorithm, parts.collect::<Vec<_>>()), check, "{algorithm:?} {cuts:?}");
            }
        }
        assert_eq!(crc64(CHECK), 0xae8b_1486_0a79_9888);
        assert_eq!(combined(Crc64Nvme, []), crc64(b""));
    }

    #[test]
    fn the_cheapest_checksum_is_taken() {
        use ChecksumAlgorithm::{Crc32, Crc64Nvme, Sha1, Sha256};
        let all: [(ChecksumAlgorithm, &[u8]); 3] = [(Sha256, &[9; 32]), (Crc32, &[0, 0, 1, 2]), (Sha1, &[8; 20])];
        assert_eq!(Expected::of(&object(&all)), Expected::Crc(Crc32, 0x102));
        assert_eq!(Expected::of(&object(&[(Crc64Nvme, &[1, 0, 0, 0, 0, 0, 0, 0])])), Expected::Crc(Crc64Nvme, 1 << 56));
        assert_eq!(Expected::of(&object(&all[2..])), Expected::Sha(Sha1, vec![8; 20]));
        assert_eq!(Expected::of(&object(&[])), Expected::Nothing);
    }

    #[test]
    fn hashes_in_order_are_those_of_the_standard() {
        for (algorithm, start) in [(ChecksumAlgorithm::Sha1, [0xa9, 0x99]), (ChecksumAlgorithm::Sha256, [0xba, 0x78])] {
            let mut hash = Expected::Sha(algorithm, Vec::new()).in_order().unwrap();
            hash.update(b"a");
            hash.update(b"bc");
            assert_eq!(hash.finish()[..2], start);
        }
    }
}
