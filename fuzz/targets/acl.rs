//! Access control lists as setxattr(2) brings them: refused, or kept and given back so that they are taken again.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use runseal::backing::MemoryBacking;
use runseal::crypt::Keyring;
use runseal::fs::{Creator, ROOT, Scratch, ScratchOptions, SetAttr, XattrMode, acl_permissions};
use runseal::spec::{EngineChoice, MemoryLock};
use runseal::store::Store;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const CALLER: Creator = Creator { uid: 1000, gid: 100, umask: 0o022 };

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| {
    let keyring = Keyring::new(EngineChoice::Portable, MemoryLock::Try).expect("keys");
    let store = Store::new(Box::new(MemoryBacking::new(1)), keyring, 1 << 30);
    Scratch::new(store, ScratchOptions { memory: 1 << 30, uid: 0, gid: 0, mode: 0o755 })
});

fuzz_target!(|value: &[u8]| {
    let scratch = &*SCRATCH;
    let dir = scratch.mkdir(ROOT, b"d", 0o755, &CALLER).expect("a directory").ino;
    let known = acl_permissions(value);
    for name in [ACCESS, DEFAULT] {
        let set = scratch.setxattr(dir, name, value, XattrMode::Any);
        assert_eq!(set.is_ok(), known.is_ok(), "both judge by one reading");
        let Ok(back) = scratch.getxattr(dir, name) else { continue };
        assert!(acl_permissions(&back).expect("what was kept can be read").is_some());
        scratch.setxattr(dir, name, &back, XattrMode::Replace).expect("what was kept is taken again");
        assert_eq!(scratch.getxattr(dir, name).expect("kept"), back);
    }
    // What is made below inherits; the bits of the mode and of the list stay one thing.
    let file = scratch.mknod(dir, b"f", runseal::fs::Kind::File, 0o666, 0, &CALLER).expect("a file");
    let set = SetAttr { mode: Some(0o640), ..SetAttr::default() };
    assert_eq!(scratch.setattr(file.ino, &set).expect("its mode").mode & 0o777, 0o640);
    scratch.unlink(dir, b"f").expect("removed");
    scratch.forget(file.ino, 1);
    scratch.rmdir(ROOT, b"d").expect("removed");
    scratch.forget(dir, 1);
    scratch.check();
});
