//! Arena files without names: `O_TMPFILE`, or created and unlinked at once where the file system cannot.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag};
use nix::sys::stat::Mode;
use nix::sys::statfs::{self, FsType};

use super::Backing;

use crate::sys::path::shown;

/// Arena files per directory: ext4 serialises the buffered writers of one file, so writers are spread.
const ARENAS_PER_DIRECTORY: usize = 4;

/// Why a backing directory was refused.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// The directory cannot take arena files.
    #[error("backing {path}: {problem}; {remedy}")]
    Refused {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
}

/// Anonymous arena files in one or several directories.
pub struct AnonBacking {
    files: Vec<File>,
    /// One file on each file system, for asking how much is free.
    disks: Vec<usize>,
    warnings: Vec<String>,
}

impl AnonBacking {
    /// Creates the arena files. Several directories are used side by side (striped by extent); naming more than one
    /// pays only if they are on different disks.
    ///
    /// # Errors
    /// A directory that is missing, not a directory, not writable, read-only, or on a network file system.
    pub fn open(directories: &[PathBuf]) -> Result<Self, BackingError> {
        let (mut files, mut warnings) = (Vec::new(), Vec::new());
        // In turns, so that threads with neighbouring home arenas write to different disks.
        for _ in 0..ARENAS_PER_DIRECTORY {
            for path in directories {
                files.push(open_in(path, &mut warnings)?);
            }
        }
        let disks = distinct_disks(&files);
        Ok(Self { files, disks, warnings })
    }

    /// What is usable but not as it should be; one sentence each, naming the directory.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn file(&self, arena: u32) -> &File {
        &self.files[arena as usize]
    }
}

impl Backing for AnonBacking {
    fn arenas(&self) -> u32 {
        self.files.len() as u32
    }

    fn read_at(&self, arena: u32, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.file(arena);
        let mut done = 0;
        while done < buf.len() {
            match file.read_at(&mut buf[done..], offset + done as u64) {
                // Behind the last byte ever written: a hole like any other.
                Ok(0) => {
                    buf[done..].fill(0);
                    return Ok(());
                }
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_at(&self, arena: u32, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file(arena).write_all_at(buf, offset)
    }

    fn discard(&self, arena: u32, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(nix::fcntl::fallocate(self.file(arena), flags, offset as i64, len as i64)?)
    }

    fn set_aside(&self, arena: u32, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match nix::fcntl::fallocate(self.file(arena), flags, offset as i64, len as i64) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Err(io::ErrorKind::Unsupported.into()),
            other => Ok(other?),
        }
    }

    fn available(&self) -> io::Result<u64> {
        self.disks.iter().try_fold(0u64, |sum, &index| {
            let stat = nix::sys::statvfs::fstatvfs(&self.files[index])?;
            Ok(sum.saturating_add(stat.blocks_available().saturating_mul(stat.fragment_size())))
        })
    }
}

fn open_in(path: &Path, warnings: &mut Vec<String>) -> Result<File, BackingError> {
    let refuse =
        |problem: String, remedy: &'static str| BackingError::Refused { path: path.to_owned(), problem, remedy };
    let stat = statfs::statfs(path).map_err(|errno| {
        refuse(errno.desc().to_owned(), "name an existing directory on a local disk with --backing or RUNSEAL_BACKING")
    })?;
    match kind_of(stat.filesystem_type()) {
        FsKind::Memory => warn_once(
            warnings,
            format!(
                "backing {} is in memory (tmpfs): the scratch takes RAM; name a directory on a disk with --backing",
                shown(path)
            ),
        ),
        FsKind::Network(name) => {
            return Err(refuse(
                format!("is on a network file system ({name})"),
                "ciphertext there would outlive a crash out of reach; name a directory on a local disk",
            ));
        }
        FsKind::Disk => {}
    }
    open_arena(path, warnings).map_err(|errno| refuse_open(path, errno))
}

fn warn_once(warnings: &mut Vec<String>, warning: String) {
    if !warnings.contains(&warning) {
        warnings.push(warning);
    }
}

fn refuse_open(path: &Path, errno: Errno) -> BackingError {
    let remedy = match errno {
        Errno::EROFS => "the file system is read-only; name a writable directory with --backing or RUNSEAL_BACKING",
        Errno::EACCES | Errno::EPERM => "give this user write permission, or name another directory with --backing",
        Errno::ENOTDIR => "name a directory, not a file",
        Errno::ENOSPC | Errno::EDQUOT => "free some space or inodes there, or name another directory with --backing",
        _ => "name another directory with --backing or RUNSEAL_BACKING",
    };
    BackingError::Refused { path: path.to_owned(), problem: errno.desc().to_owned(), remedy }
}

fn open_arena(directory: &Path, warnings: &mut Vec<String>) -> Result<File, Errno> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    // O_EXCL with O_TMPFILE: the file can never be given a name (open(2)).
    match nix::fcntl::open(directory, flags | OFlag::O_TMPFILE | OFlag::O_EXCL, mode) {
        Ok(fd) => Ok(File::from(fd)),
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
            let name = shown(directory);
            warn_once(
                warnings,
                format!("backing {name} cannot make nameless files (O_TMPFILE): arena files have a name for a moment"),
            );
            open_unlinked(directory, flags, mode).map(File::from)
        }
        Err(errno) => Err(errno),
    }
}

fn open_unlinked(directory: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    let mut random = [0u8; 12];
    getrandom::fill(&mut random).map_err(|_| Errno::EIO)?;
    let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = directory.join(format!(".runseal-{name}"));
    let fd = nix::fcntl::open(&path, flags | OFlag::O_CREAT | OFlag::O_EXCL, mode)?;
    nix::unistd::unlink(&path)?;
    Ok(fd)
}

enum FsKind {
    Disk,
    Memory,
    Network(&'static str),
}

/// Magic numbers of `statfs(2)`, also those libc does not name.
fn kind_of(fs: FsType) -> FsKind {
    const RAMFS: i64 = 0x8584_58f6;
    const NETWORK: [(i64, &str); 5] =
        [(0x6969, "NFS"), (0x517b, "SMB"), (0xff53_4d42, "CIFS"), (0xfe53_4d42, "SMB2"), (0x5346_414f, "AFS")];
    let magic = fs.0;
    if fs == statfs::TMPFS_MAGIC || magic == RAMFS {
        return FsKind::Memory;
    }
    NETWORK.iter().find(|(number, _)| *number == magic).map_or(FsKind::Disk, |(_, name)| FsKind::Network(name))
}

fn distinct_disks(files: &[File]) -> Vec<usize> {
    let mut seen = Vec::new();
    let mut first_of = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let Ok(device) = file.metadata().map(|meta| meta.dev()) else { continue };
        if !seen.contains(&device) {
            seen.push(device);
            first_of.push(index);
        }
    }
    first_of
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_have_no_name_and_hold_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let backing = AnonBacking::open(&[directory.path().to_owned()]).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "an arena has a name");
        backing.write_at(1, b"cipher", 8192).unwrap();
        let mut buf = [9; 10];
        backing.read_at(1, &mut buf, 8190).unwrap();
        assert_eq!(&buf, b"\0\0cipher\0\0");
        backing.read_at(0, &mut buf, 0).unwrap();
        assert_eq!(buf, [0; 10], "arenas are apart");
        assert!(backing.available().unwrap() > 0);
    }

    #[test]
    fn discarding_gives_the_space_back() {
        let directory = tempfile::tempdir().unwrap();
        let backing = AnonBacking::open(&[directory.path().to_owned()]).unwrap();
        backing.write_at(0, &vec![1; 1 << 20], 0).unwrap();
        let blocks = |b: &AnonBacking| b.file(0).metadata().unwrap().blocks();
        backing.file(0).sync_all().unwrap();
        assert!(blocks(&backing) >= 2048);
        backing.discard(0, 0, 1 << 20).unwrap();
        assert_eq!(blocks(&backing), 0);
        let mut buf = [9; 16];
        backing.read_at(0, &mut buf, 4096).unwrap();
        assert_eq!(buf, [0; 16]);
    }

    #[test]
    fn several_directories_are_used_in_turn_and_counted_once() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let backing = AnonBacking::open(&[one.path().to_owned(), two.path().to_owned()]).unwrap();
        assert_eq!(backing.arenas(), 2 * ARENAS_PER_DIRECTORY as u32);
        let single = AnonBacking::open(&[one.path().to_owned()]).unwrap();
        let (both, alone) = (backing.available().unwrap(), single.available().unwrap());
        assert!(both < alone + alone / 2, "one disk counted twice: {both} against {alone}");
    }

    #[test]
    fn unusable_directories_are_named_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, b"").unwrap();
        for path in [directory.path().join("missing"), file] {
            let Err(error) = AnonBacking::open(std::slice::from_ref(&path)) else { panic!("{path:?} was taken") };
            let text = error.to_string();
            assert!(text.contains(path.to_str().unwrap()) && text.contains("name"), "{text}");
        }
    }

    #[test]
    fn memory_file_systems_are_warned_about() {
        if statfs::statfs("/dev/shm").map(|s| s.filesystem_type()) != Ok(statfs::TMPFS_MAGIC) {
            println!("SKIP: /dev/shm is not a tmpfs here");
            return;
        }
        let backing = AnonBacking::open(&["/dev/shm".into()]).unwrap();
        assert!(backing.warnings()[0].contains("/dev/shm"), "{:?}", backing.warnings());
    }

    #[test]
    fn network_file_systems_are_recognised() {
        assert!(matches!(kind_of(FsType(0x6969)), FsKind::Network("NFS")));
        assert!(matches!(kind_of(statfs::EXT4_SUPER_MAGIC), FsKind::Disk));
    }

    #[test]
    fn the_fallback_leaves_no_name_behind() {
        let directory = tempfile::tempdir().unwrap();
        let fd = open_unlinked(directory.path(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::S_IRUSR).unwrap();
        assert_eq!(File::from(fd).metadata().unwrap().nlink(), 0);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
