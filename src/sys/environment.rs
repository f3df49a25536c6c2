//! The environment of this process: secrets leave the block that the kernel shows as `/proc/PID/environ`.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, c_char};
use std::io;
use std::os::unix::ffi::OsStrExt;

use zeroize::Zeroize;

use super::process::alone;

unsafe extern "C" {
    /// environ(7).
    static mut environ: *mut *mut c_char;
}

/// Moves the values of the variables `chosen` to the heap and overwrites them where they were. Programs started by this
/// process get them as before. To be called first of all: fails if this process has more than one thread.
pub fn hide(chosen: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    alone("changing the environment")?;
    // SAFETY: no other thread can use the environment meanwhile: there is none (checked above), and no other can start
    // one. No safe interface tells where a variable lies.
    unsafe {
        each(|slot| {
            let entry = CStr::from_ptr(*slot);
            if !name_of(entry).is_some_and(&chosen) {
                return;
            }
            // Never freed: the environment refers to it as long as the process lives.
            let moved: &'static mut [u8] = entry.to_bytes_with_nul().to_vec().leak();
            let old = std::mem::replace(&mut *slot, moved.as_mut_ptr().cast());
            wipe(old);
        });
    }
    Ok(())
}

/// Overwrites the values of the variables `chosen` and removes these variables. As [`hide`].
#[allow(clippy::disallowed_methods, reason = "what it is disallowed for, a race with other threads, is checked for")]
pub fn forget(chosen: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    alone("changing the environment")?;
    let mut names = Vec::new();
    // SAFETY: as in `hide`.
    unsafe {
        each(|slot| {
            if let Some(name) = name_of(CStr::from_ptr(*slot)).filter(|name| chosen(name)) {
                names.push(name.to_owned());
                wipe(*slot);
            }
        });
        names.iter().for_each(|name| std::env::remove_var(name));
    }
    Ok(())
}

/// Calls `act` with the place of each pointer of the environment.
///
/// # Safety
///
/// No other thread may use the environment meanwhile, and `act` must leave a C string there.
unsafe fn each(mut act: impl FnMut(*mut *mut c_char)) {
    // SAFETY: the C library keeps the array, if there is one, and ends it by a null pointer; the caller vouches for the
    // rest.
    unsafe {
        let mut slot = environ;
        while !slot.is_null() && !(*slot).is_null() {
            act(slot);
            slot = slot.add(1);
        }
    }
}

fn name_of(entry: &CStr) -> Option<&OsStr> {
    let bytes = entry.to_bytes();
    let end = bytes.iter().position(|&byte| byte == b'=')?;
    Some(OsStr::from_bytes(&bytes[..end]))
}

/// Overwrites what is behind the name.
///
/// # Safety
///
/// `entry` must be a C string nobody else refers to, which may be written.
unsafe fn wipe(entry: *mut c_char) {
    // SAFETY: a C string ends at its NUL, and the caller vouches that it is ours alone.
    let bytes = unsafe { std::slice::from_raw_parts_mut(entry.cast::<u8>(), CStr::from_ptr(entry).to_bytes().len()) };
    if let Some(at) = bytes.iter().position(|&byte| byte == b'=') {
        bytes[at + 1..].zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_not_touched_beside_other_threads() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        assert!(hide(|_| true).is_err() && forget(|_| true).is_err());
        drop(stop);
        let _ = thread.join();
    }

    #[test]
    fn a_value_is_overwritten_and_its_name_stays() {
        let mut entry = *b"NAME=se=cret\0beyond";
        // SAFETY: the array has a NUL and belongs to this test.
        unsafe { wipe(entry.as_mut_ptr().cast()) };
        assert_eq!(&entry, b"NAME=\0\0\0\0\0\0\0\0beyond");
        assert_eq!(name_of(c"A=b=c").map(OsStr::as_bytes), Some(&b"A"[..]));
        assert_eq!(name_of(c"none"), None);
    }
}
