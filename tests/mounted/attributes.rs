//! Attributes: times, permissions, extended attributes, ACLs.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::statvfs::{FsFlags, statvfs};
use runseal::fs::Time;

use crate::scratch_mount::{Mounted, has, mount, mount_options};

// promise: S-20
#[test]
fn times_are_exact_also_before_1970() {
    let Some(scratch) = mount() else { return };
    fs::write(scratch.path("file"), "x").expect("a file");
    fs::create_dir(scratch.path("dir")).expect("a directory");
    for (secs, nanos) in [(-2, 500_000_000), (-1, 1), (0, 0), (1, 999_999_999), (1 << 33, 5)] {
        let time = secs * 1_000_000_000 + nanos;
        scratch.python(&format!("for n in 'file', 'dir': os.utime(n, ns=({time}, {time} + 1000000000))"));
        for name in ["file", "dir"] {
            let seen = fs::metadata(scratch.path(name)).expect("stat");
            assert_eq!((seen.atime(), seen.atime_nsec(), seen.mtime()), (secs, nanos, secs + 1), "{name}");
            // What the server keeps, which counts once the kernel has forgotten the inode.
            let kept = scratch.scratch.lookup(1, name.as_bytes()).expect("the server knows it");
            assert_eq!(kept.atime, Time { secs, nanos: nanos as u32 }, "{name}");
            assert_eq!(kept.mtime, Time { secs: secs + 1, nanos: nanos as u32 }, "{name}");
        }
    }
    fs::read(scratch.path("file")).expect("a read");
    assert_eq!(fs::metadata(scratch.path("file")).expect("stat").atime(), 1 << 33, "a read moved atime");
}

#[test]
fn the_server_learns_size_and_times_of_what_was_written() {
    let Some(scratch) = mount() else { return };
    fs::write(scratch.path("file"), "12345").expect("a file");
    let seen = fs::metadata(scratch.path("file")).expect("stat");
    File::open(scratch.path("file")).and_then(|file| file.sync_all()).expect("fsync");
    let kept = scratch.scratch.lookup(1, b"file").expect("the server knows it");
    assert_eq!(kept.size, 5);
    assert_eq!((kept.mtime.secs, i64::from(kept.mtime.nanos)), (seen.mtime(), seen.mtime_nsec()));
    assert_eq!((kept.ctime.secs, i64::from(kept.ctime.nanos)), (seen.ctime(), seen.ctime_nsec()));
}

// promise: S-21
#[test]
fn extended_attributes_up_to_64_kib() {
    let Some(scratch) = mount() else { return };
    scratch.python(
        "def refused(code, call, *args):
    try:
        call(*args)
    except OSError as e:
        assert e.errno == code, e
    else:
        assert False, f'{call} did not fail'
open('f', 'w').close()
os.symlink('f', 'l')
big = os.urandom(65536)
os.setxattr('f', 'user.big', big)
assert os.getxattr('f', 'user.big') == big
os.setxattr('f', 'user.empty', b'')
assert os.getxattr('f', 'user.empty') == b''
os.setxattr('f', 'trusted.t', b'1')
os.setxattr('f', 'security.s', b'2')
os.setxattr('l', 'trusted.link', b'3', follow_symlinks=False)
assert os.getxattr('l', 'trusted.link', follow_symlinks=False) == b'3'
assert set(os.listxattr('f')) == {'user.big', 'user.empty', 'trusted.t', 'security.s'}
refused(errno.EEXIST, os.setxattr, 'f', 'user.big', b'x', os.XATTR_CREATE)
refused(errno.ENODATA, os.setxattr, 'f', 'user.none', b'x', os.XATTR_REPLACE)
os.setxattr('f', 'user.big', b'short', os.XATTR_REPLACE)
assert os.getxattr('f', 'user.big') == b'short'
os.removexattr('f', 'user.big')
refused(errno.ENODATA, os.getxattr, 'f', 'user.big')
refused(errno.ENODATA, os.removexattr, 'f', 'user.big')
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
os.setxattr('f', 'user.five', b'12345')
buffer = ctypes.create_string_buffer(4)
assert libc.getxattr(b'f', b'user.five', None, 0) == 5
assert libc.getxattr(b'f', b'user.five', buffer, 4) == -1 and ctypes.get_errno() == errno.ERANGE
assert libc.listxattr(b'f', buffer, 4) == -1 and ctypes.get_errno() == errno.ERANGE",
    );
}

/// On kernels with multigrain time stamps (Linux 6.13), fine stamps that others take move those of the kernel forward.
// promise: S-141
#[test]
fn what_is_made_later_is_not_older() {
    let Some(scratch) = mount() else { return };
    let noise = File::create(scratch.beside("noise").join("noise")).expect("a file on the disk");
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                noise.write_all_at(b"x", 0).expect("a write");
                noise.metadata().expect("fstat");
                thread::sleep(Duration::from_micros(300));
            }
        });
        let older = (0..1000).filter_map(|_| first_that_is_older(&scratch)).collect::<Vec<_>>();
        end.store(true, Ordering::Relaxed);
        assert_eq!(older, [""; 0], "older than what was there before");
    });
}

/// Seconds and nanoseconds.
type Stamp = (i64, i64);

/// Changes of the kernel and of the server take turns; names the first one that is stamped with an earlier time than the
/// one before it.
fn first_that_is_older(scratch: &Mounted) -> Option<&'static str> {
    let (file, other, dir) = (scratch.path("file"), scratch.path("other"), scratch.path("dir"));
    let write = || fs::write(&file, "data").expect("a write");
    let modified =
        |path: &Path| fs::symlink_metadata(path).map(|seen| (seen.mtime(), seen.mtime_nsec())).expect("stat");
    let changed = |path: &Path| fs::symlink_metadata(path).map(|seen| (seen.ctime(), seen.ctime_nsec())).expect("stat");
    let changes: [(&str, &dyn Fn() -> Stamp); 12] = [
        ("write", &|| (write(), modified(&file)).1),
        ("create", &|| (File::create(&other).expect("create"), modified(&other)).1),
        ("write", &|| (write(), modified(&file)).1),
        ("mkdir", &|| (fs::create_dir(&dir).expect("mkdir"), modified(&dir)).1),
        ("write", &|| (write(), modified(&file)).1),
        ("rename", &|| (fs::rename(&other, dir.join("x")).expect("rename"), changed(&dir.join("x"))).1),
        ("write", &|| (write(), modified(&file)).1),
        ("symlink", &|| (symlink("x", &other).expect("symlink"), modified(&other)).1),
        ("write", &|| (write(), modified(&file)).1),
        ("unlink", &|| (fs::remove_file(dir.join("x")).expect("unlink"), modified(&dir)).1),
        ("link", &|| (fs::hard_link(&file, dir.join("y")).expect("link"), changed(&file)).1),
        ("chmod", &|| (fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("chmod"), changed(&dir)).1),
    ];
    let stamps: Vec<_> = changes.iter().map(|(name, change)| (*name, change())).collect();
    fs::remove_dir_all(&dir).expect("rm -r");
    fs::remove_file(&other).expect("unlink");
    stamps.windows(2).find(|pair| pair[1].1 < pair[0].1).map(|pair| pair[1].0)
}

// promise: S-140
#[test]
fn as_many_attributes_as_can_be_set_can_be_listed() {
    let Some(scratch) = mount() else { return };
    scratch.python(
        "open('f', 'w').close()
names = [f'user.{n:0200}' for n in range(400)]
try:
    for n, name in enumerate(names): os.setxattr('f', name, b'')
except OSError as e: assert e.errno == errno.ENOSPC, e
else: assert False, 'more names than can be listed were set'
assert sorted(os.listxattr('f')) == names[:n] and n > 300, n
os.removexattr('f', names[0])
os.setxattr('f', names[n], b'')",
    );
}

// promise: S-22
#[test]
fn acls_are_enforced_inherited_and_in_step_with_the_mode() {
    if !has("setfacl") {
        return;
    }
    let Some(scratch) = mount() else { return };
    scratch.sh("umask 022
        echo secret > f; chmod 600 f; setfacl -m u:65534:r f
        test \"$(stat -c %a f)\" = 640
        getfacl -cn f | grep -qx 'user:65534:r--'
        mkdir d; setfacl -d -m u:65534:rwx,g::r-x,o::- d; umask 077; echo x > d/inherits; mkdir d/below
        getfacl -cn d/inherits | grep -q '^user:65534:rwx'
        getfacl -cn d/below | grep -qx 'default:user:65534:rwx'
        chmod 600 f; getfacl -cn f | grep -q '^mask::---'
        chmod 640 f");
    scratch.python(
        "def as_other(uid, path, works):
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        try:
            open(path).read()
            os._exit(0 if works else 1)
        except PermissionError:
            os._exit(1 if works else 0)
    assert os.waitpid(pid, 0)[1] == 0, (uid, path, works)
as_other(65534, 'f', True)
as_other(65533, 'f', False)
os.chmod('f', 0o600)
as_other(65534, 'f', False)",
    );
}

// promise: S-23
#[test]
fn writing_truncating_and_chown_clear_setuid_and_setgid() {
    let Some(scratch) = mount_options(&["suid"]) else { return };
    scratch.python(
        "import mmap
def write(): 
    with open('f', 'r+b', buffering=0) as f: f.write(b'new')
def truncate(): os.truncate('f', 1)
def o_trunc(): os.close(os.open('f', os.O_WRONLY | os.O_TRUNC))
def run(uid, action):
    with open('f', 'wb') as f: f.write(b'x' * 4096)
    os.chown('f', 0, 0)
    os.chmod('f', 0o6777)
    pid = os.fork()
    if pid == 0:
        if uid:
            os.setgroups([]); os.setgid(uid); os.setuid(uid)
        action()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    return stat.S_IMODE(os.stat('f').st_mode)
for action in write, truncate, o_trunc:
    assert run(65534, action) == 0o777, (action, oct(run(65534, action)))
    assert run(0, action) == 0o6777, (action, oct(run(0, action)))
assert run(0, lambda: os.chown('f', 1, 1)) == 0o777
os.mkdir('d'); os.chmod('d', 0o2775); os.chown('d', 5, 5)
assert stat.S_IMODE(os.stat('d').st_mode) == 0o2775
open('d/child', 'w').close()
os.mkdir('d/sub')
assert os.stat('d/child').st_gid == 5 and os.stat('d/sub').st_gid == 5
assert os.stat('d/sub').st_mode & stat.S_ISGID",
    );
    // The server must know as well: the kernel may forget the inode.
    assert_eq!(scratch.scratch.lookup(1, b"f").expect("the server knows it").mode, 0o777);
}

#[test]
fn permissions_bind_other_users() {
    let Some(scratch) = mount() else { return };
    scratch.python(
        "os.mkdir('private', 0o700)
open('private/x', 'w').close()
open('readable', 'w').close(); os.chmod('readable', 0o644)
os.mkdir('sticky'); os.chmod('sticky', 0o1777); open('sticky/roots', 'w').close()
def refused(call, *args):
    try: call(*args)
    except PermissionError: return
    os._exit(1)
pid = os.fork()
if pid == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    refused(os.stat, 'private/x')
    refused(open, 'readable', 'w')
    refused(open, 'new', 'w')
    refused(os.unlink, 'sticky/roots')
    refused(os.chmod, 'readable', 0o777)
    open('readable').close()
    open('sticky/mine', 'w').close()
    assert os.stat('sticky/mine').st_uid == 65534
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0",
    );
}

// promise: S-24
#[test]
fn setuid_and_devices_are_off_unless_asked_for() {
    let Some(scratch) = mount() else { return };
    let flags = statvfs(&scratch.root()).expect("statvfs").flags();
    assert!(flags.contains(FsFlags::ST_NOSUID | FsFlags::ST_NODEV));
    scratch.sh("mknod null c 1 3; ! echo x > null");

    let Some(scratch) = mount_options(&["suid", "dev", "noexec"]) else { return };
    let flags = statvfs(&scratch.root()).expect("statvfs").flags();
    assert!(flags.contains(FsFlags::ST_NOEXEC));
    assert!(!flags.intersects(FsFlags::ST_NOSUID | FsFlags::ST_NODEV));
    scratch.sh("mknod null c 1 3; echo x > null; cp /bin/true .; ! ./true");
}
