//! Set-user-ID, set-group-ID and file capabilities, after everything that may take them away: as on a local file system.

use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, StatxFlags};

use crate::scratch_mount::{mount_options, skip, succeed};

/// Prints one line for each call, caller and mode: what became of the mode, and whether the file capability is left.
const TABLE: &str = r#"
import ctypes, errno, mmap, os, stat, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
OWNER, OTHER = 4103, 4104
CAPABILITY = struct.pack('<IIIII', 0x02000001, 1 << 10, 0, 0, 0)
def acl(*entries): return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in entries)
NO_ID = 0xffffffff
MINIMAL = acl((1, 7, NO_ID), (4, 7, NO_ID), (32, 7, NO_ID))
NAMED = acl((1, 7, NO_ID), (2, 7, 7), (4, 7, NO_ID), (16, 7, NO_ID), (32, 7, NO_ID))

def opened(flags, call):
    def run():
        fd = os.open('f', flags)
        call(fd)
        os.close(fd)
    return run
def fallocate(mode, offset=0):
    def call(fd):
        if libc.fallocate64(fd, mode, ctypes.c_longlong(offset), ctypes.c_longlong(4096)):
            raise OSError(ctypes.get_errno(), 'fallocate')
    return opened(os.O_RDWR, call)
def direct(fd):
    page = mmap.mmap(-1, 4096)
    page[:] = b'd' * 4096
    os.pwrite(fd, page, 0)
def store(fd):
    with mmap.mmap(fd, 4096) as map:
        map[0:3] = b'new'
        map.flush()
def source(): return os.open('source', os.O_RDONLY)

CASES = {
    'write': opened(os.O_WRONLY, lambda fd: os.write(fd, b'new')),
    'append': opened(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b'new')),
    'direct': opened(os.O_RDWR | os.O_DIRECT, direct),
    'sendfile': opened(os.O_WRONLY, lambda fd: os.sendfile(fd, source(), 0, 100)),
    'store': opened(os.O_RDWR, store),
    'truncate': lambda: os.truncate('f', 1),
    'truncate to the same': lambda: os.truncate('f', 8192),
    'extend': lambda: os.truncate('f', 9999),
    'ftruncate': opened(os.O_RDWR, lambda fd: os.ftruncate(fd, 1)),
    'O_TRUNC': opened(os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    'allocate': fallocate(0),
    'allocate more': fallocate(0, 65536),
    'reserve': fallocate(1, 65536),
    'punch': fallocate(3),
    'zero': fallocate(16),
    'copy_file_range': opened(os.O_WRONLY, lambda fd: os.copy_file_range(source(), fd, 4096)),
    'chown to nothing': lambda: os.chown('f', -1, -1),
    'chown to the same': lambda: os.chown('f', OWNER, OWNER),
    'chgrp to the same': lambda: os.chown('f', -1, OWNER),
    'chown to another': lambda: os.chown('f', OTHER, OTHER),
    'chmod': lambda: os.chmod('f', 0o6777),
    'utime': lambda: os.utime('f'),
    'rename': lambda: os.rename('f', 'f'),
    'named ACL': lambda: os.setxattr('f', 'system.posix_acl_access', NAMED),
    'minimal ACL': lambda: os.setxattr('f', 'system.posix_acl_access', MINIMAL),
    'no ACL': lambda: os.removexattr('f', 'system.posix_acl_access'),
    'ACL of a directory': lambda: os.setxattr('d', 'system.posix_acl_access', NAMED),
    'default ACL': lambda: os.setxattr('d', 'system.posix_acl_default', NAMED),
    'user attribute': lambda: os.setxattr('f', 'user.x', b'1'),
}

def become(uid, groups):
    os.setgroups(groups); os.setgid(uid); os.setuid(uid)
def without_fsetid():
    header = struct.pack('<Ii', 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    sets = list(struct.unpack('<6I', data.raw))
    sets[0] &= ~(1 << 4)
    assert libc.capset(header, struct.pack('<6I', *sets)) == 0
CALLERS = {
    'owner': lambda: become(OWNER, []),
    'owner of another group': lambda: (os.setgroups([]), os.setgid(OTHER), os.setuid(OWNER)),
    'member': lambda: become(OTHER, [9, OWNER]),
    'stranger': lambda: become(OTHER, [9]),
    'root': lambda: None,
    'root without CAP_FSETID': without_fsetid,
}

def row(call, caller, mode):
    for name in 'f', 'd':
        if os.path.lexists(name): (os.rmdir if name == 'd' else os.unlink)(name)
    with open('f', 'wb') as file: file.write(b'y' * 8192)
    os.mkdir('d')
    for name in 'f', 'd':
        os.chown(name, OWNER, OWNER)
        os.chmod(name, mode)
    os.setxattr('f', 'security.capability', CAPABILITY)
    seen = os.stat('f').st_mode  # cached from here on
    child = os.fork()
    if child == 0:
        CALLERS[caller]()
        try: CASES[call]()
        except OSError as error: os._exit(error.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    modes = [oct(stat.S_IMODE(os.stat(name).st_mode)) for name in ('f', 'd')]
    kept = 'security.capability' in os.listxattr('f')
    return f'{call}, by {caller}, {oct(mode)}: {errno.errorcode.get(code, "done")} f {modes[0]} d {modes[1]} capability {kept}'

open('source', 'wb').write(b's' * 8192)
os.chmod('source', 0o644)
os.chmod('.', 0o777)
for call in CASES:
    for caller in CALLERS:
        for mode in 0o6777, 0o6767, 0o4777, 0o2777, 0o2767, 0o777:
            print(row(call, caller, mode))
"#;

/// Errors by which a file system says that it does not have a call.
const UNSUPPORTED: [&str; 2] = ["EOPNOTSUPP", "EINVAL"];

// promise: S-23
#[test]
fn every_call_by_everybody_takes_away_what_it_does_on_a_local_file_system() {
    let Some(scratch) = mount_options(&["suid"]) else { return };
    let local = scratch.beside("local");
    let (theirs, ours) = (table(&local), table(&scratch.root()));
    if theirs.iter().any(|row| row.starts_with("write, by stranger, 0o2767") && row.contains("f 0o2767")) {
        return skip("this kernel is older than 6.2, or the local file system keeps the bits").unwrap_or(());
    }
    let supported = |row: &&String| !UNSUPPORTED.iter().any(|code| row.contains(code));
    let pairs = theirs.iter().zip(&ours).filter(|(theirs, _)| supported(theirs));
    let different: Vec<_> = pairs.filter(|(theirs, ours)| comparable(theirs) != comparable(ours)).collect();
    assert!(different.is_empty(), "local and sealed differ: {different:#?}");
    assert!(ours.iter().all(|row| supported(&row)), "something is not offered");
}

/// Programs are executed by the mode that the kernel remembers, and a look at the mode alone shows that one.
// promise: S-23
#[test]
fn the_kernel_forgets_bits_that_a_change_has_cleared() {
    let Some(scratch) = mount_options(&["suid"]) else { return };
    let direct = "fd = os.open('f', os.O_RDWR | os.O_DIRECT); page = mmap.mmap(-1, 4096); os.pwrite(fd, page, 0)";
    let cached = "fd = os.open('f', os.O_WRONLY); os.write(fd, b'new')";
    let allocate = "fd = os.open('f', os.O_RDWR); os.posix_fallocate(fd, 0, 65536)";
    let copy = "fd = os.open('f', os.O_WRONLY); os.copy_file_range(os.open('source', os.O_RDONLY), fd, 4096)";
    scratch.sh("head -c 8192 /dev/zero >source; chmod 644 source");
    for change in [direct, cached, allocate, copy] {
        scratch.sh("rm -f f; head -c 8192 /dev/zero >f; chmod 6777 f; stat f");
        scratch.python(&format!("import mmap\nos.setgroups([]); os.setgid(4104); os.setuid(4104)\n{change}"));
        let seen = rustix::fs::statx(rustix::fs::CWD, scratch.path("f"), AtFlags::empty(), StatxFlags::MODE);
        assert_eq!(seen.expect("statx").stx_mode & 0o7777, 0o777, "{change}");
    }
}

/// The kernel's FUSE takes the capability away before it asks whether the owner may be changed.
fn comparable(row: &str) -> &str {
    if row.contains("EPERM") { row.split(" capability").next().unwrap_or(row) } else { row }
}

fn table(directory: &Path) -> Vec<String> {
    let said = succeed(Command::new("python3").args(["-c", TABLE]).current_dir(directory));
    said.lines().map(str::to_owned).collect()
}
