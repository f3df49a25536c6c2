//! The known answer that an engine must give before a run trusts it with data.

use zeroize::Zeroizing;

use super::{CryptError, Engine, SectorCipher, XtsKey};
use crate::units::SECTOR;

/// Key of vectors 10 to 14 of IEEE 1619-2007 Annex B: digits of e, then of pi.
const KEY: [u8; 64] = [
    0x27, 0x18, 0x28, 0x18, 0x28, 0x45, 0x90, 0x45, 0x23, 0x53, 0x60, 0x28, 0x74, 0x71, 0x35, 0x26, 0x62, 0x49, 0x77,
    0x57, 0x24, 0x70, 0x93, 0x69, 0x99, 0x59, 0x57, 0x49, 0x66, 0x96, 0x76, 0x27, 0x31, 0x41, 0x59, 0x26, 0x53, 0x58,
    0x97, 0x93, 0x23, 0x84, 0x62, 0x64, 0x33, 0x83, 0x27, 0x95, 0x02, 0x88, 0x41, 0x97, 0x16, 0x93, 0x99, 0x37, 0x51,
    0x05, 0x82, 0x09, 0x74, 0x94, 0x45, 0x92,
];
/// Sequence number of vector 10. Its plaintext counts 0, 1, ... 255 twice.
const UNIT: u64 = 0xff;
/// First and last block of its 512 bytes of ciphertext. What XTS makes of a block depends on its place, not on the
/// length of the data unit, so a whole sector whose plaintext begins like the vector's must show both.
const FIRST_BLOCK: [u8; 16] =
    [0x1c, 0x3b, 0x3a, 0x10, 0x2f, 0x77, 0x03, 0x86, 0xe4, 0x83, 0x6c, 0x99, 0xe3, 0x70, 0xcf, 0x9b];
const LAST_BLOCK: [u8; 16] =
    [0xc4, 0xf3, 0x6f, 0xfd, 0xa9, 0xfc, 0xea, 0x70, 0xb9, 0xc6, 0xe6, 0x93, 0xe1, 0x48, 0xc1, 0x51];

/// Encrypts and decrypts known sectors; takes some microseconds.
pub fn run(engine: Engine) -> Result<(), CryptError> {
    let key = XtsKey::new(Zeroizing::new(KEY))?;
    let mut cipher = SectorCipher::new(engine, &key)?;
    if answers(&mut cipher)? { Ok(()) } else { Err(CryptError::SelfTest(engine.name())) }
}

fn answers(cipher: &mut SectorCipher) -> Result<bool, CryptError> {
    // The vector is the second sector, which also shows that sequence numbers count up.
    let plain: Vec<u8> = (0..2 * SECTOR).map(|i| i as u8).collect();
    let mut sealed = vec![0; plain.len()];
    cipher.encrypt(UNIT - 1, &plain, &mut sealed)?;
    let vector = &sealed[SECTOR..];
    let known = vector[..16] == FIRST_BLOCK && vector[496..512] == LAST_BLOCK;
    cipher.decrypt(UNIT - 1, &mut sealed)?;
    Ok(known && sealed == plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_passes_in_less_than_a_millisecond() {
        for &engine in Engine::ALL {
            let fastest = (0..5).map(|_| {
                let start = std::time::Instant::now();
                run(engine).expect("known answer");
                start.elapsed()
            });
            let fastest = fastest.min().expect("five runs");
            // Unoptimised builds of the portable engine are some fifty times slower.
            let limit = if cfg!(debug_assertions) { 50 } else { 1 };
            assert!(fastest.as_millis() < limit, "{}: {fastest:?}", engine.name());
        }
    }

    // promise: T-21
    #[test]
    fn another_key_fails_the_test() {
        for &engine in Engine::ALL {
            let mut key = KEY;
            key[40] ^= 1;
            let key = XtsKey::new(Zeroizing::new(key)).expect("halves differ");
            assert!(!answers(&mut SectorCipher::new(engine, &key).expect("cipher")).expect("no failure"));
        }
    }
}
