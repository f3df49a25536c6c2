//! The portable engine: `xts-mode` over `aes`, no C compiler needed.

use aes::Aes256;
use aes::cipher::KeyInit;
use xts_mode::{Array, Xts128};

use super::XtsKey;

/// Name, as reports show it.
pub const NAME: &str = "portable (xts-mode, aes)";

/// An expanded key in both directions; `aes` wipes its schedules on drop.
pub struct PortableXts(Xts128<Aes256>);

impl PortableXts {
    /// Expands `key`.
    pub fn new(key: &XtsKey) -> Self {
        let (data, tweak) = key.expose().split_at(32);
        let expand = |half: &[u8]| Aes256::new_from_slice(half).expect("half of 64 bytes is an AES-256 key");
        Self(Xts128::new(expand(data), expand(tweak)))
    }

    /// Encrypts one data unit; `src` and `dst` have the same length.
    pub fn encrypt(&self, tweak: &[u8; 16], src: &[u8], dst: &mut [u8]) {
        dst.copy_from_slice(src);
        self.0.encrypt_sector(dst, Array(*tweak));
    }

    /// Decrypts one data unit in place.
    pub fn decrypt(&self, tweak: &[u8; 16], buf: &mut [u8]) {
        self.0.decrypt_sector(buf, Array(*tweak));
    }
}
