//! Names and directories.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::scratch_mount::{mount, mount_options, succeed};

// promise: S-01
#[test]
fn a_name_is_any_255_bytes() {
    let Some(scratch) = mount() else { return };
    let root = scratch.root();
    let names = [vec![b'n'; 255], b"\xff\xfe not utf-8 \x80".to_vec(), b"new\nline".to_vec(), b"-rf".to_vec()];
    for name in &names {
        fs::write(root.join(OsStr::from_bytes(name)), name).expect("a file of that name");
    }
    let found: BTreeSet<_> =
        fs::read_dir(&root).expect("a listing").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(found, names.iter().map(|name| OsStr::from_bytes(name).to_owned()).collect());
    for name in &names {
        assert_eq!(&fs::read(root.join(OsStr::from_bytes(name))).expect("a read"), name);
    }
    let long = root.join("n".repeat(256));
    assert_eq!(fs::metadata(&long).expect_err("too long").raw_os_error(), Some(libc::ENAMETOOLONG));
    assert_eq!(File::create(&long).expect_err("too long").raw_os_error(), Some(libc::ENAMETOOLONG));
    assert_eq!(fs::create_dir(&long).expect_err("too long").raw_os_error(), Some(libc::ENAMETOOLONG));
}

#[test]
fn what_another_process_makes_is_seen_at_once() {
    let Some(scratch) = mount() else { return };
    let path = scratch.path("late");
    for round in 0..20 {
        assert_eq!(fs::metadata(&path).expect_err("not yet").kind(), ErrorKind::NotFound);
        succeed(Command::new("sh").args(["-c", "echo \"$2\" > \"$1\"", "sh"]).arg(&path).arg(round.to_string()));
        assert_eq!(fs::read_to_string(&path).expect("now"), format!("{round}\n"));
        succeed(Command::new("rm").arg(&path));
    }
}

#[test]
fn missing_names_and_links_are_asked_for_once() {
    let Some(scratch) = mount() else { return };
    symlink("target", scratch.path("link")).expect("a link");
    let before = (scratch.requests("LOOKUP"), scratch.requests("READLINK"));
    for _ in 0..10 {
        assert!(fs::metadata(scratch.path("missing")).is_err());
        fs::read_link(scratch.path("link")).expect("readlink");
    }
    assert_eq!((scratch.requests("LOOKUP"), scratch.requests("READLINK")), (before.0 + 1, before.1 + 1));
}

// promise: S-03
#[test]
fn rename_replaces_exchanges_and_refuses() {
    let Some(scratch) = mount() else { return };
    let (a, b) = (scratch.path("a"), scratch.path("b"));
    fs::write(&a, "a").expect("a file");
    fs::write(&b, "b").expect("a file");
    assert_eq!(renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_NOREPLACE), Err(Errno::EEXIST));
    renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).expect("exchange");
    assert_eq!(fs::read_to_string(&a).expect("a read"), "b");
    fs::rename(&a, &b).expect("replace");
    assert_eq!(fs::read_to_string(&b).expect("a read"), "b");
    assert!(!a.exists());
    renameat2(AT_FDCWD, &b, AT_FDCWD, &a, RenameFlags::RENAME_WHITEOUT).expect("whiteout");
    assert!(fs::metadata(&b).expect("the whiteout").file_type().is_char_device());

    fs::create_dir_all(scratch.path("d/below")).expect("directories");
    assert_eq!(
        fs::rename(scratch.path("d"), scratch.path("d/below/d")).expect_err("a loop").raw_os_error(),
        Some(libc::EINVAL)
    );
    assert_eq!(fs::rename(&a, scratch.path("d")).expect_err("a directory").raw_os_error(), Some(libc::EISDIR));
    fs::create_dir(scratch.path("full")).expect("a directory");
    fs::write(scratch.path("full/x"), "").expect("a file");
    assert_eq!(
        fs::rename(scratch.path("d"), scratch.path("full")).expect_err("not empty").raw_os_error(),
        Some(libc::ENOTEMPTY)
    );
}

// promise: S-04
#[test]
fn links_and_special_files() {
    let Some(scratch) = mount_options(&["dev"]) else { return };
    let path = scratch.path("file");
    fs::write(&path, "one").expect("a file");
    for n in 0..50 {
        fs::hard_link(&path, scratch.path(&format!("link-{n}"))).expect("a link");
    }
    fs::write(scratch.path("link-7"), "two").expect("a write");
    assert_eq!(fs::read_to_string(&path).expect("a read"), "two");
    assert_eq!(fs::metadata(&path).expect("stat").nlink(), 51);
    fs::remove_file(&path).expect("unlink");
    assert_eq!(fs::metadata(scratch.path("link-0")).expect("stat").nlink(), 50);

    symlink("link-0", scratch.path("symlink")).expect("a symbolic link");
    assert_eq!(fs::read_to_string(scratch.path("symlink")).expect("a read"), "two");
    assert_eq!(fs::symlink_metadata(scratch.path("symlink")).expect("lstat").len(), 6);
    scratch.sh("mkfifo fifo; mknod null c 1 3; mknod disk b 7 0; echo gone > null; (echo through > fifo) & cat fifo");
    assert_eq!(fs::metadata(scratch.path("null")).expect("stat").rdev(), nix::sys::stat::makedev(1, 3));
    scratch.python("import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('sock')\ns.listen()\nc = socket.socket(socket.AF_UNIX)\nc.connect('sock')");
    assert!(fs::symlink_metadata(scratch.path("sock")).expect("lstat").file_type().is_socket());
}

// promise: S-05
#[test]
fn a_listing_shows_what_stays_exactly_once_while_the_rest_changes() {
    let Some(scratch) = mount() else { return };
    let dir = scratch.path("busy");
    fs::create_dir(&dir).expect("a directory");
    for n in 0..2000 {
        File::create(dir.join(format!("stays-{n}"))).expect("a file");
        File::create(dir.join(format!("goes-{n}"))).expect("a file");
    }
    let mut seen = Vec::new();
    for (n, entry) in fs::read_dir(&dir).expect("a listing").enumerate() {
        let name = entry.expect("an entry").file_name().into_string().expect("utf-8");
        if name.starts_with("stays") {
            seen.push(name);
        }
        if n < 2000 {
            fs::remove_file(dir.join(format!("goes-{n}"))).expect("unlink");
            File::create(dir.join(format!("comes-{n}"))).expect("a file");
        }
    }
    let unique: BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), unique.len()), (2000, 2000));
    assert_eq!(fs::read_dir(&dir).expect("a listing").count(), 4000);
    fs::remove_dir_all(&dir).expect("rm -r");
}

#[test]
fn directories_count_their_links_and_must_be_empty_to_go() {
    let Some(scratch) = mount() else { return };
    fs::create_dir_all(scratch.path("d/a")).expect("directories");
    fs::create_dir(scratch.path("d/b")).expect("a directory");
    assert_eq!(fs::metadata(scratch.path("d")).expect("stat").nlink(), 4);
    assert_eq!(fs::remove_dir(scratch.path("d")).expect_err("not empty").raw_os_error(), Some(libc::ENOTEMPTY));
    let inside = File::open(scratch.path("d/a")).expect("a directory");
    fs::remove_dir(scratch.path("d/a")).expect("rmdir");
    assert_eq!(fs::metadata(scratch.path("d")).expect("stat").nlink(), 3);
    assert_eq!(inside.metadata().expect("fstat").nlink(), 0);
    fs::rename(scratch.path("d/b"), scratch.path("e")).expect("rename");
    assert_eq!(fs::metadata(scratch.path("d")).expect("stat").nlink(), 2);
}
