//! A disk of our own: an ext4 image behind a loop device, and the search through its raw bytes.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, lseek};
use tempfile::TempDir;

use crate::tap::Secrets;

/// A mounted ext4 image; unmounted and removed on drop.
pub struct Disk {
    folder: TempDir,
    /// Where the file system of the image is mounted.
    pub mount: PathBuf,
    fresh_free: u64,
}

impl Disk {
    /// Size of the image in bytes.
    pub const SIZE: u64 = 256 << 20;

    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("runseal-secrecy-").tempdir_in("/var/tmp").expect("a work folder");
        let mount = folder.path().join("mnt");
        let image = folder.path().join("image");
        fs::create_dir(&mount).expect("a mountpoint");
        File::create(&image).and_then(|file| file.set_len(Self::SIZE)).expect("an image file");
        // No lazy initialisation: the kernel must not write to the image behind our back.
        let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-E", options, path(&image)]);
        run("mount", &["-o", "loop", path(&image), path(&mount)]);
        let mut disk = Self { folder, mount, fresh_free: 0 };
        disk.fresh_free = disk.free();
        disk
    }

    /// Folder on another disk than the image, for inputs, results and signals.
    pub fn outside(&self) -> &Path {
        self.folder.path()
    }

    /// Free blocks of 4 KiB, all writes settled.
    pub fn free(&self) -> u64 {
        self.settle();
        statvfs(&self.mount).expect("statvfs").blocks_free()
    }

    /// Blocks taken since the disk was new.
    pub fn used(&self) -> u64 {
        self.fresh_free.saturating_sub(self.free())
    }

    /// Names in the file system, `lost+found` aside.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.mount).expect("readdir");
        let names = entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned());
        names.filter(|name| name != "lost+found").collect()
    }

    /// Those of `canaries` that stand anywhere in the raw image.
    pub fn search<'a>(&self, canaries: &[&'a str]) -> Vec<&'a str> {
        self.settle();
        let mut found = HashSet::new();
        let overlap = canaries.iter().map(|canary| canary.len()).max().unwrap_or(1) - 1;
        let mut window = Vec::new();
        self.chunks(|chunk| {
            window.extend_from_slice(chunk);
            found.extend(canaries.iter().copied().filter(|canary| contains(&window, canary.as_bytes())));
            window.drain(..window.len().saturating_sub(overlap));
        });
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort_unstable();
        found
    }

    /// Those of `secrets` that stand anywhere in the raw image.
    pub fn search_for<'a>(&self, secrets: &'a Secrets) -> Vec<&'a str> {
        self.settle();
        let mut found = Vec::new();
        self.chunks(|chunk| found.extend(secrets.found_in(chunk)));
        found
    }

    /// All blocks of 4 KiB that look random: ciphertext, and nothing that ext4 itself writes.
    pub fn ciphertext(&self) -> Vec<Vec<u8>> {
        self.settle();
        let mut blocks = Vec::new();
        self.chunks(|chunk| {
            blocks.extend(chunk.chunks_exact(4096).filter(|block| looks_random(block)).map(<[u8]>::to_vec))
        });
        blocks
    }

    /// Brings everything the file system holds back into the image, and leaves nothing of it in the device's cache.
    fn settle(&self) {
        let folder = File::open(&self.mount).expect("the mount can be opened");
        nix::unistd::syncfs(folder.as_fd()).expect("syncfs");
        File::open(self.folder.path().join("image")).and_then(|image| image.sync_all()).expect("fsync of the image");
    }

    /// Hands out the image piece by piece; holes of the image file, never written, are left out.
    fn chunks(&self, mut take: impl FnMut(&[u8])) {
        let image = File::open(self.folder.path().join("image")).expect("the image can be opened");
        let mut chunk = vec![0; 4 << 20];
        let mut at = 0;
        while let Ok(data) = lseek(&image, at, Whence::SeekData) {
            let hole = lseek(&image, data, Whence::SeekHole).expect("a hole follows, at the latest at the end");
            at = data;
            while at < hole {
                let length = chunk.len().min(usize::try_from(hole - at).expect("positive"));
                image.read_exact_at(&mut chunk[..length], at.unsigned_abs()).expect("the image can be read");
                take(&chunk[..length]);
                at += i64::try_from(length).expect("small");
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // `mount -o loop` made the loop device auto-clear: it goes with the mount.
        let unmounted = Command::new("umount").arg(&self.mount).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{}: still busy, detached", self.mount.display());
            let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
        }
    }
}

/// In a block of random data each byte value stands 16 times, give or take; text, zeros and tables repeat some value more.
fn looks_random(block: &[u8]) -> bool {
    let mut counts = [0; 256];
    for byte in block {
        counts[usize::from(*byte)] += 1;
    }
    counts.iter().all(|count| *count <= 64)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    // First byte first: `windows` alone takes minutes over an image.
    let mut rest = haystack;
    while let Some(at) = rest.iter().position(|byte| *byte == needle[0]) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn path(path: &Path) -> &str {
    path.to_str().expect("our paths are UTF-8")
}

/// The instrument itself: silent on a new disk, and not blind.
#[test]
fn the_search_finds_what_is_there_and_nothing_else() {
    crate::require_host!();
    let disk = Disk::new();
    let (contents, name, absent) = (crate::canary("content"), crate::canary("name"), crate::canary("absent"));
    let canaries = [contents.as_str(), name.as_str(), absent.as_str()];
    assert_eq!(disk.search(&canaries), [""; 0]);
    assert_eq!((disk.used(), disk.ciphertext().len()), (0, 0));

    let mut random = vec![0; 1 << 20];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random)).expect("random bytes");
    fs::write(disk.mount.join("random"), &random).expect("the disk takes a file");
    let padded = format!("{}{contents}", "x".repeat(5_000_000));
    fs::write(disk.mount.join(&name), padded).expect("the disk takes a file");
    assert_eq!(disk.search(&canaries), canaries[..2]);
    assert_eq!(disk.ciphertext().len(), 256);
    assert!(disk.used() >= 1024 + 256);
}
