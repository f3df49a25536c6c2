//! The scratch as the upper layer of overlayfs, as container engines use it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount as mount2, umount2};

use crate::scratch_mount::{mount, skip, succeed};

// promise: S-03
#[test]
fn an_overlay_copies_up_hides_and_renames() {
    let Some(scratch) = mount() else { return };
    let lower = scratch.beside("lower");
    fs::write(lower.join("kept"), "lower\n").expect("a file");
    fs::write(lower.join("changed"), "lower\n").expect("a file");
    fs::write(lower.join("deleted"), "lower\n").expect("a file");
    fs::create_dir_all(lower.join("dir/sub")).expect("directories");
    fs::write(lower.join("dir/sub/file"), "lower\n").expect("a file");
    fs::create_dir(scratch.path("upper")).expect("a directory");
    fs::create_dir(scratch.path("work")).expect("a directory");
    let merged = scratch.beside("merged");
    let Some(overlay) = Overlay::mount(&lower, &scratch.root(), &merged) else { return };

    let mut shell = std::process::Command::new("sh");
    succeed(shell.current_dir(&merged).args([
        "-euc",
        "test $(cat kept) = lower
         echo upper >> changed; test \"$(tail -1 changed)\" = upper
         rm deleted; ! test -e deleted
         mv dir/sub/file moved; test $(cat moved) = lower
         rm -r dir; mkdir dir; test -z \"$(ls dir)\"
         ln kept linked; chmod 600 linked; test $(stat -c %a kept) = 600
         mv kept renamed; ! test -e kept; test $(cat linked) = lower
         touch deleted; mv deleted again; ls > /dev/null",
    ]));
    drop(overlay);

    // Mounted again, everything is as it was left.
    let overlay = Overlay::mount(&lower, &scratch.root(), &merged).expect("as before");
    let mut names: Vec<_> =
        fs::read_dir(&merged).expect("a listing").map(|e| e.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["again", "changed", "dir", "linked", "moved", "renamed"]);
    assert_eq!(fs::read_dir(merged.join("dir")).expect("a listing").count(), 0);
    drop(overlay);
    assert_eq!(fs::read_to_string(lower.join("changed")).expect("a read"), "lower\n");
    assert!(lower.join("dir/sub/file").exists());
}

struct Overlay(PathBuf);

impl Overlay {
    fn mount(lower: &Path, scratch: &Path, merged: &Path) -> Option<Self> {
        let data = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            scratch.join("upper").display(),
            scratch.join("work").display()
        );
        match mount2(Some("overlay"), merged, Some("overlay"), MsFlags::empty(), Some(data.as_str())) {
            Ok(()) => Some(Self(merged.to_owned())),
            Err(nix::errno::Errno::ENODEV | nix::errno::Errno::EPERM) => skip("no overlayfs here"),
            Err(error) => panic!("overlayfs refuses the scratch as its upper layer: {error}"),
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let result = umount2(&self.0, MntFlags::empty());
        if result.is_err() {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
        if !std::thread::panicking() {
            result.expect("the overlay is unmounted");
        }
    }
}
