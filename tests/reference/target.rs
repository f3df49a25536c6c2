//! What operations are run on, and what is compared.

use std::collections::BTreeMap;

use crate::ops::Call;

/// A file system to run operations on.
pub trait Target {
    fn name(&self) -> &str;

    /// Makes one call. Failures are compared by errno.
    fn apply(&mut self, call: &Call) -> Outcome;

    /// Sets the times of everything to [`OLD`] (where that is possible), so that the next [`Target::tree`] shows what
    /// moved since.
    fn settle(&mut self);

    /// Everything there is.
    fn tree(&mut self) -> Tree;
}

pub type Outcome = Result<Value, i32>;

/// What a call answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Nothing,
    Bytes(Vec<u8>),
    Count(u64),
    Names(Vec<String>),
}

/// The time everything has after [`Target::settle`], in seconds.
pub const OLD: i64 = 100_000;

/// Path relative to the root, `""` being the root itself, to what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<String, Seen>);

/// Everything comparable about one path. The size of a directory is not.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// `S_IFMT` and permission bits.
    pub mode: u32,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// Of a file the bytes, of a symbolic link the target.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// First path with the same inode.
    pub same_as: String,
    /// mtime moved since [`Target::settle`].
    pub modified: bool,
    /// ctime moved since [`Target::settle`]; always `false` if one of the targets cannot tell.
    pub changed: bool,
}

const NAMES: [&str; 4] = ["a", "b", "cc", "\u{e9}"];

impl Tree {
    /// A path in a directory that exists, the number taken modulo. Every 100th name is too long.
    pub fn path(&self, dir: usize, name: usize) -> String {
        let dirs: Vec<&String> = self.0.iter().filter(|(_, seen)| seen.kind() == libc::S_IFDIR).map(|e| e.0).collect();
        let dir = dirs[dir % dirs.len()];
        let name = if name == 0 { "n".repeat(256) } else { NAMES[name % NAMES.len()].to_owned() };
        join(dir, &name)
    }

    pub fn is_openable(&self, path: &str) -> bool {
        self.0.get(path).is_none_or(|seen| matches!(seen.kind(), libc::S_IFREG | libc::S_IFDIR))
    }

    pub fn is_symlink(&self, path: &str) -> bool {
        self.0.get(path).is_some_and(|seen| seen.kind() == libc::S_IFLNK)
    }
}

impl Seen {
    fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
}

/// Long contents as length and runs, so that a failure can be read.
impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mode, nlink, uid, gid, rdev, content, xattrs, same_as, modified, changed } = self;
        write!(f, "{mode:o} nlink {nlink} {uid}:{gid} rdev {rdev} as {same_as:?}")?;
        write!(f, " modified {modified} changed {changed} size {} [", content.len())?;
        for run in content.chunk_by(|a, b| a == b).take(20) {
            write!(f, "{}x{} ", run[0], run.len())?;
        }
        write!(f, "]")?;
        xattrs.iter().try_for_each(|(name, value)| write!(f, " {name}={}:{value:?}", value.len()))
    }
}

pub fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

/// Directory and name of a path that is not the root.
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}
