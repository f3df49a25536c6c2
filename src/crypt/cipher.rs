//! One expanded XTS-AES-256 key, over the engine chosen at start.

use zeroize::Zeroizing;

#[cfg(feature = "aws-lc")]
use super::aws_lc;
use super::{CryptError, portable};
use crate::spec::EngineChoice;
use crate::units::SECTOR;

/// Bytes of one AES block, the granule of XTS.
const BLOCK: usize = 16;
/// Largest data unit: 2^20 blocks (IEEE 1619-2018 5.1, NIST SP 800-38E).
const MAX_UNIT: usize = BLOCK << 20;

/// An implementation of XTS-AES-256 in this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// AWS-LC's `EVP_aes_256_xts`.
    #[cfg(feature = "aws-lc")]
    AwsLc,
    /// `xts-mode` over `aes`.
    Portable,
}

impl Engine {
    /// Every engine of this build, the preferred one first.
    pub const ALL: &'static [Self] = &[
        #[cfg(feature = "aws-lc")]
        Self::AwsLc,
        Self::Portable,
    ];

    /// The engine that serves `choice`.
    pub fn choose(choice: EngineChoice) -> Result<Self, CryptError> {
        match choice {
            EngineChoice::Auto => Ok(Self::ALL[0]),
            EngineChoice::Portable => Ok(Self::Portable),
            #[cfg(feature = "aws-lc")]
            EngineChoice::AwsLc => Ok(Self::AwsLc),
            #[cfg(not(feature = "aws-lc"))]
            EngineChoice::AwsLc => Err(CryptError::NoEngine("aws-lc")),
        }
    }

    /// Name and version, as reports show it.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => aws_lc::NAME,
            Self::Portable => portable::NAME,
        }
    }
}

/// An XTS-AES-256 key: data key, then tweak key, 32 bytes each, never equal. Wiped on drop.
///
/// Key types can be neither copied, printed nor serialised:
///
/// ```compile_fail
/// fn print(key: runseal::crypt::XtsKey) { println!("{key:?}") }
/// ```
/// ```compile_fail
/// fn copy(key: runseal::crypt::XtsKey) -> (runseal::crypt::XtsKey, runseal::crypt::XtsKey) { (key.clone(), key) }
/// ```
pub struct XtsKey(Zeroizing<[u8; 64]>);

impl XtsKey {
    /// Takes a key whose halves differ (FIPS 140-3 IG C.I: checked before first use).
    pub fn new(bytes: Zeroizing<[u8; 64]>) -> Result<Self, CryptError> {
        let (data, tweak) = bytes.split_at(32);
        let difference = data.iter().zip(tweak).fold(0, |sum, (a, b)| sum | (a ^ b));
        if difference == 0 { Err(CryptError::EqualHalves) } else { Ok(Self(bytes)) }
    }

    /// The 64 bytes, for the engines.
    pub(super) fn expose(&self) -> &[u8; 64] {
        &self.0
    }
}

/// XTS-AES-256 (IEEE 1619) with one key, ready for use in both directions. Wiped on drop.
///
/// The tweak of a data unit is its 128-bit little-endian sequence number. Ciphertext stealing is not supported: data
/// units are whole blocks.
pub struct SectorCipher(Expanded);

enum Expanded {
    #[cfg(feature = "aws-lc")]
    AwsLc(aws_lc::AwsLcXts),
    // Boxed, so that a moved cipher leaves no copy of its key schedule behind.
    Portable(Box<portable::PortableXts>),
}

impl SectorCipher {
    /// Expands `key` for `engine`.
    pub fn new(engine: Engine, key: &XtsKey) -> Result<Self, CryptError> {
        Ok(Self(match engine {
            #[cfg(feature = "aws-lc")]
            Engine::AwsLc => Expanded::AwsLc(aws_lc::AwsLcXts::new(key)?),
            Engine::Portable => Expanded::Portable(Box::new(portable::PortableXts::new(key))),
        }))
    }

    /// Encrypts whole 4096-byte sectors from `src` into `dst` (same length). The first has data-unit sequence number
    /// `unit`, the following ones count up.
    pub fn encrypt(&mut self, unit: u64, src: &[u8], dst: &mut [u8]) -> Result<(), CryptError> {
        if src.len() != dst.len() || !src.len().is_multiple_of(SECTOR) {
            return Err(CryptError::Length(src.len()));
        }
        for ((tweak, src), dst) in (u128::from(unit)..).zip(src.chunks_exact(SECTOR)).zip(dst.chunks_exact_mut(SECTOR))
        {
            self.seal(tweak, src, dst)?;
        }
        Ok(())
    }

    /// Decrypts whole sectors in place; the inverse of [`SectorCipher::encrypt`].
    pub fn decrypt(&mut self, unit: u64, buf: &mut [u8]) -> Result<(), CryptError> {
        if !buf.len().is_multiple_of(SECTOR) {
            return Err(CryptError::Length(buf.len()));
        }
        for (tweak, buf) in (u128::from(unit)..).zip(buf.chunks_exact_mut(SECTOR)) {
            self.open(tweak, buf)?;
        }
        Ok(())
    }

    /// Encrypts one data unit of 16 bytes to 16 MiB, a multiple of 16, under any sequence number.
    pub fn encrypt_unit(&mut self, unit: u128, src: &[u8], dst: &mut [u8]) -> Result<(), CryptError> {
        if src.len() != dst.len() || !is_unit_length(src.len()) {
            return Err(CryptError::Length(src.len()));
        }
        self.seal(unit, src, dst)
    }

    /// Decrypts one data unit in place; the inverse of [`SectorCipher::encrypt_unit`].
    pub fn decrypt_unit(&mut self, unit: u128, buf: &mut [u8]) -> Result<(), CryptError> {
        if !is_unit_length(buf.len()) {
            return Err(CryptError::Length(buf.len()));
        }
        self.open(unit, buf)
    }

    /// One data unit whose lengths have been checked.
    fn seal(&mut self, unit: u128, src: &[u8], dst: &mut [u8]) -> Result<(), CryptError> {
        let tweak = unit.to_le_bytes();
        match &mut self.0 {
            #[cfg(feature = "aws-lc")]
            Expanded::AwsLc(xts) => xts.encrypt(&tweak, src, dst),
            Expanded::Portable(xts) => {
                xts.encrypt(&tweak, src, dst);
                Ok(())
            }
        }
    }

    /// One data unit whose length has been checked.
    fn open(&mut self, unit: u128, buf: &mut [u8]) -> Result<(), CryptError> {
        let tweak = unit.to_le_bytes();
        match &mut self.0 {
            #[cfg(feature = "aws-lc")]
            Expanded::AwsLc(xts) => xts.decrypt(&tweak, buf),
            Expanded::Portable(xts) => {
                xts.decrypt(&tweak, buf);
                Ok(())
            }
        }
    }
}

fn is_unit_length(len: usize) -> bool {
    len.is_multiple_of(BLOCK) && (BLOCK..=MAX_UNIT).contains(&len)
}

#[cfg(test)]
mod tests {
    use super::*;

    // promise: T-22
    #[test]
    fn equal_halves_are_refused() {
        let mut bytes = [7; 64];
        assert!(matches!(XtsKey::new(Zeroizing::new(bytes)), Err(CryptError::EqualHalves)));
        bytes[63] = 8;
        assert!(XtsKey::new(Zeroizing::new(bytes)).is_ok());
    }

    #[test]
    fn odd_lengths_are_refused() {
        let key = XtsKey::new(Zeroizing::new(std::array::from_fn(|i| i as u8))).expect("halves differ");
        for &engine in Engine::ALL {
            let mut cipher = SectorCipher::new(engine, &key).expect("cipher");
            let mut out = vec![0; 2 * SECTOR];
            for len in [1, SECTOR - 1, SECTOR + 16] {
                let data = vec![0; len];
                assert!(matches!(cipher.encrypt(0, &data, &mut out[..len]), Err(CryptError::Length(n)) if n == len));
                assert!(matches!(cipher.decrypt(0, &mut out[..len]), Err(CryptError::Length(n)) if n == len));
            }
            assert!(matches!(cipher.encrypt(0, &[0; SECTOR], &mut out), Err(CryptError::Length(SECTOR))));
            for len in [0, 15, 17, MAX_UNIT + BLOCK] {
                let (data, mut out) = (vec![0; len], vec![0; len]);
                assert!(matches!(cipher.encrypt_unit(0, &data, &mut out), Err(CryptError::Length(n)) if n == len));
                assert!(matches!(cipher.decrypt_unit(0, &mut out), Err(CryptError::Length(n)) if n == len));
            }
            cipher.encrypt(0, &[], &mut []).expect("nothing to do");
        }
    }

    #[test]
    fn choices_name_an_engine_of_this_build() {
        assert_eq!(Engine::choose(EngineChoice::Auto).expect("always one"), Engine::ALL[0]);
        assert_eq!(Engine::choose(EngineChoice::Portable).expect("always built"), Engine::Portable);
        let aws_lc = Engine::choose(EngineChoice::AwsLc);
        assert_eq!(aws_lc.is_ok(), cfg!(feature = "aws-lc"));
        assert!(aws_lc.err().is_none_or(|error| matches!(error, CryptError::NoEngine("aws-lc"))));
    }
}
