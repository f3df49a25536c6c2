//! The AWS-LC engine: `EVP_aes_256_xts`. The only file that calls into C.
#![allow(unsafe_code)]

use std::os::raw::c_int;
use std::ptr::{NonNull, null, null_mut};

use aws_lc_sys::{
    EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_Cipher, EVP_CipherInit_ex, EVP_aes_256_xts,
};

use super::{CryptError, XtsKey};

/// Name and version, as reports show it.
pub const NAME: &str = {
    const PREFIX: &[u8] = b"AWS-LC ";
    const VERSION: &[u8] = aws_lc_sys::AWSLC_VERSION_NUMBER_STRING;
    // Without the terminating NUL.
    const LEN: usize = PREFIX.len() + VERSION.len() - 1;
    const TEXT: [u8; LEN] = {
        let mut text = [0; LEN];
        let mut i = 0;
        while i < LEN {
            text[i] = if i < PREFIX.len() { PREFIX[i] } else { VERSION[i - PREFIX.len()] };
            i += 1;
        }
        text
    };
    match std::str::from_utf8(&TEXT) {
        Ok(name) => name,
        Err(_) => panic!("version strings are ASCII"),
    }
};

/// An expanded key in both directions.
pub struct AwsLcXts {
    seal: Context,
    open: Context,
}

impl AwsLcXts {
    /// Expands `key`.
    pub fn new(key: &XtsKey) -> Result<Self, CryptError> {
        Ok(Self { seal: Context::new(key, 1)?, open: Context::new(key, 0)? })
    }

    /// Encrypts one data unit; `src` and `dst` have the same length.
    pub fn encrypt(&mut self, tweak: &[u8; 16], src: &[u8], dst: &mut [u8]) -> Result<(), CryptError> {
        assert_eq!(src.len(), dst.len());
        // SAFETY: `src` is readable and `dst` writable for `src.len()` bytes, and as a shared and an exclusive borrow
        // they do not overlap.
        unsafe { self.seal.run(tweak, src.as_ptr(), dst.as_mut_ptr(), src.len()) }
    }

    /// Decrypts one data unit in place.
    pub fn decrypt(&mut self, tweak: &[u8; 16], buf: &mut [u8]) -> Result<(), CryptError> {
        // SAFETY: `buf` is readable and writable for its length; source and destination are equal.
        unsafe { self.open.run(tweak, buf.as_ptr(), buf.as_mut_ptr(), buf.len()) }
    }
}

/// An `EVP_CIPHER_CTX` with the key expanded for one direction. AWS-LC keeps the schedule on the heap and cleanses
/// every block it frees (`OPENSSL_free`), so drop wipes.
struct Context(NonNull<EVP_CIPHER_CTX>);

impl Context {
    /// `direction`: 1 encrypts, 0 decrypts.
    fn new(key: &XtsKey, direction: c_int) -> Result<Self, CryptError> {
        // SAFETY: takes no arguments; returns null or a fresh context that `EVP_CIPHER_CTX_free` will release.
        let context = Self(NonNull::new(unsafe { EVP_CIPHER_CTX_new() }).ok_or(CryptError::EngineFailed(NAME))?);
        // SAFETY: the context is live, the cipher is a static table, the key is read for the 64 bytes that
        // EVP_aes_256_xts takes, and no IV is given yet.
        let done = unsafe {
            EVP_CipherInit_ex(
                context.0.as_ptr(),
                EVP_aes_256_xts(),
                null_mut(),
                key.expose().as_ptr(),
                null(),
                direction,
            )
        };
        succeeded(done).map(|()| context)
    }

    /// Processes one data unit of `len` bytes. The cipher and the schedule stay: only the tweak is set anew.
    ///
    /// # Safety
    ///
    /// `src` must be readable and `dst` writable for `len` bytes, and the two ranges equal or disjoint.
    unsafe fn run(&mut self, tweak: &[u8; 16], src: *const u8, dst: *mut u8, len: usize) -> Result<(), CryptError> {
        // SAFETY: the context is live and ours alone (`&mut self`); a null cipher and key keep those set by `new`; the
        // IV of XTS is the 16 bytes of `tweak`; -1 keeps the direction.
        succeeded(unsafe { EVP_CipherInit_ex(self.0.as_ptr(), null(), null_mut(), null(), tweak.as_ptr(), -1) })?;
        // SAFETY: the context is initialised with key and tweak; the caller vouches for the ranges.
        succeeded(unsafe { EVP_Cipher(self.0.as_ptr(), dst, src, len) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: `new` made this context, and it is freed once.
        unsafe { EVP_CIPHER_CTX_free(self.0.as_ptr()) };
    }
}

// SAFETY: a context is plain heap memory without ties to a thread; every use takes `&mut self`.
unsafe impl Send for Context {}

fn succeeded(code: c_int) -> Result<(), CryptError> {
    if code == 1 { Ok(()) } else { Err(CryptError::EngineFailed(NAME)) }
}
