//! Random operations: what proptest draws ([`Op`]) and what is called ([`Call`]).

use proptest::prelude::*;

use crate::target::Tree;

/// What a target can do, or is worth comparing on it.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Other owners, set-ID bits, `trusted.` attributes, whiteouts.
    pub root: bool,
    /// `user.` attributes.
    pub xattrs: bool,
    /// ACLs.
    pub acls: bool,
    /// `FALLOC_FL_ZERO_RANGE`, which tmpfs has not.
    pub zero_range: bool,
    /// Which operations move ctime; a comparison has to wait for the clock at each step.
    pub ctime: bool,
}

/// A name in a directory. Few names and few directories, so that operations meet.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Taken modulo the directories there are.
    dir: usize,
    name: usize,
}

#[derive(Clone, Copy, Debug)]
pub enum Special {
    Fifo,
    Socket,
}

/// `RENAME_*`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renaming {
    Plain,
    NoReplace,
    Exchange,
    Whiteout,
}

#[derive(Clone, Copy, Debug)]
pub enum Allocate {
    Grow,
    KeepSize,
    Punch,
    Zero,
    ZeroKeepSize,
}

#[derive(Clone, Copy, Debug)]
pub enum Flag {
    Any,
    Create,
    Replace,
}

/// Where something happens: drawn as a [`Place`], called as a path relative to the root.
#[derive(Clone, Debug)]
pub enum Operation<P> {
    Create(P, u32),
    Mkdir(P, u32),
    Mknod(P, Special, u32),
    Symlink(P, usize),
    Link(P, P),
    Unlink(P),
    Rmdir(P),
    Rename(P, P, Renaming),
    Write(P, u64, Vec<u8>),
    Read(P, u64, usize),
    Truncate(P, u64),
    Fallocate(P, Allocate, u64, u64),
    Copy(P, u64, P, u64, u64),
    Chmod(P, u32),
    Chown(P, Option<u32>, Option<u32>),
    SetTimes(P, i64),
    SetXattr(P, &'static str, Vec<u8>, Flag),
    RemoveXattr(P, &'static str),
    List(P),
    /// Keeps a file in use, whatever happens to its name.
    Open(P),
    WriteOpen(usize, u64, Vec<u8>),
    ReadOpen(usize),
    Close(usize),
}

pub type Op = Operation<Place>;
pub type Call = Operation<String>;

pub const ACCESS_ACL: &str = "system.posix_acl_access";
pub const DEFAULT_ACL: &str = "system.posix_acl_default";
pub const XATTRS: [&str; 5] = ["user.x", "user.y", "trusted.z", ACCESS_ACL, DEFAULT_ACL];
pub const TARGETS: [&str; 3] = ["a", "b/a", "nowhere"];

const OWNERS: [u32; 3] = [0, 1000, 1001];
const MODES: [u32; 8] = [0o644, 0o755, 0o600, 0o777, 0o2775, 0o6755, 0o4711, 0o2644];

/// A list of operations.
pub fn ops(longest: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..longest)
}

fn op() -> impl Strategy<Value = Op> {
    use Operation::*;
    prop_oneof![
        4 => names(),
        3 => contents(),
        2 => attributes(),
        1 => prop_oneof![
            place().prop_map(List),
            place().prop_map(Open),
            (any::<usize>(), offset(), data()).prop_map(|(i, offset, data)| WriteOpen(i, offset, data)),
            any::<usize>().prop_map(ReadOpen),
            any::<usize>().prop_map(Close),
        ],
    ]
}

fn names() -> impl Strategy<Value = Op> {
    use Operation::*;
    let rename = prop_oneof![
        4 => Just(Renaming::Plain), 1 => Just(Renaming::NoReplace), 1 => Just(Renaming::Exchange), 1 => Just(Renaming::Whiteout)
    ];
    prop_oneof![
        3 => (place(), mode()).prop_map(|(at, mode)| Create(at, mode)),
        3 => (place(), mode()).prop_map(|(at, mode)| Mkdir(at, mode)),
        1 => (place(), prop_oneof![Just(Special::Fifo), Just(Special::Socket)], mode())
            .prop_map(|(at, kind, mode)| Mknod(at, kind, mode)),
        1 => (place(), 0..TARGETS.len()).prop_map(|(at, target)| Symlink(at, target)),
        2 => (place(), place()).prop_map(|(at, new)| Link(at, new)),
        2 => place().prop_map(Unlink),
        2 => place().prop_map(Rmdir),
        6 => (place(), place(), rename).prop_map(|(at, new, flags)| Rename(at, new, flags)),
    ]
}

fn contents() -> impl Strategy<Value = Op> {
    use Operation::*;
    let allocate = prop_oneof![
        Just(Allocate::Grow),
        Just(Allocate::KeepSize),
        Just(Allocate::Punch),
        Just(Allocate::Zero),
        Just(Allocate::ZeroKeepSize)
    ];
    prop_oneof![
        3 => (place(), offset(), data()).prop_map(|(at, offset, data)| Write(at, offset, data)),
        1 => (place(), offset(), 0..9000usize).prop_map(|(at, offset, len)| Read(at, offset, len)),
        1 => (place(), offset()).prop_map(|(at, size)| Truncate(at, size)),
        2 => (place(), allocate, offset(), 0..9000u64).prop_map(|(at, mode, offset, len)| Fallocate(at, mode, offset, len)),
        2 => (place(), offset(), place(), offset(), 0..9000u64)
            .prop_map(|(from, from_offset, to, to_offset, len)| Copy(from, from_offset, to, to_offset, len)),
    ]
}

fn attributes() -> impl Strategy<Value = Op> {
    use Operation::*;
    let owner = || prop::option::of(prop::sample::select(&OWNERS[..]));
    let name = || prop::sample::select(&XATTRS[..]);
    let flag = prop_oneof![3 => Just(Flag::Any), 1 => Just(Flag::Create), 1 => Just(Flag::Replace)];
    prop_oneof![
        2 => (place(), mode()).prop_map(|(at, mode)| Chmod(at, mode)),
        1 => (place(), owner(), owner()).prop_map(|(at, uid, gid)| Chown(at, uid, gid)),
        1 => (place(), -1000..1000i64).prop_map(|(at, secs)| SetTimes(at, secs)),
        4 => (place(), name(), 0..6usize, flag)
            .prop_map(|(at, name, value, flag)| SetXattr(at, name, value_of(name, value), flag)),
        2 => (place(), name()).prop_map(|(at, name)| RemoveXattr(at, name)),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    (0..5usize, 0..200usize).prop_map(|(dir, name)| Place { dir, name })
}

fn mode() -> impl Strategy<Value = u32> {
    prop::sample::select(&MODES[..])
}

/// Near the edges of sectors, and between them.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..12_000u64,
        (0..3u64).prop_map(|sector| sector * 4096),
        (1..3u64).prop_map(|sector| sector * 4096 - 1)
    ]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    (1..=255u8, prop_oneof![0..6000usize, Just(4096), Just(8192)]).prop_map(|(byte, len)| vec![byte; len])
}

fn value_of(name: &str, value: usize) -> Vec<u8> {
    if name == ACCESS_ACL || name == DEFAULT_ACL { acl(value) } else { vec![value as u8; value * 100] }
}

/// Valid and invalid lists.
fn acl(which: usize) -> Vec<u8> {
    let entries: &[(u16, u16, u32)] = match which {
        0 => &[(1, 6, !0), (4, 4, !0), (0x20, 0, !0)],
        1 => &[(1, 7, !0), (2, 6, 1000), (4, 5, !0), (0x10, 7, !0), (0x20, 4, !0)],
        2 => &[(1, 7, !0), (2, 7, 1000), (2, 0, 1001), (4, 5, !0), (8, 3, 50), (0x10, 5, !0), (0x20, 1, !0)],
        3 => &[(1, 7, !0), (4, 7, !0), (0x10, 2, !0), (0x20, 7, !0)],
        4 => &[(1, 7, !0), (2, 6, 1000), (4, 5, !0), (0x20, 4, !0)],
        _ => &[],
    };
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        value.extend(id.to_le_bytes());
    }
    value
}

impl Op {
    /// The call this operation means while the tree looks like `tree`; `None` when some target cannot do it.
    pub fn resolve(&self, tree: &Tree, features: Features) -> Option<Call> {
        use Operation::*;
        let path = |place: &Place| tree.path(place.dir, place.name);
        // Which of two errors comes first is nobody's promise.
        let short = |place: &Place| tree.path(place.dir, place.name.max(1));
        // Opening a FIFO would wait, and opening a link would follow it.
        let file = |place: &Place| Some(path(place)).filter(|path| tree.is_openable(path));
        let mode = |mode: u32| if features.root { mode } else { mode & 0o777 };
        let xattr = |name: &str| match name {
            ACCESS_ACL | DEFAULT_ACL => features.acls,
            _ => features.xattrs && (features.root || name.starts_with("user.")),
        };
        Some(match self {
            Create(at, m) => Create(path(at), mode(*m)),
            Mkdir(at, m) => Mkdir(path(at), mode(*m)),
            Mknod(at, kind, m) => Mknod(path(at), *kind, mode(*m)),
            Symlink(at, target) => Symlink(path(at), *target),
            Link(at, new) => Link(short(at), short(new)),
            Unlink(at) => Unlink(path(at)),
            Rmdir(at) => Rmdir(path(at)),
            Rename(_, _, Renaming::Whiteout) if !features.root => return None,
            Rename(at, new, flags) => Rename(short(at), short(new), *flags),
            Write(at, offset, data) => Write(file(at)?, *offset, data.clone()),
            Read(at, offset, len) => Read(file(at)?, *offset, *len),
            Truncate(at, size) => Truncate(file(at)?, *size),
            Fallocate(_, Allocate::Zero | Allocate::ZeroKeepSize, ..) if !features.zero_range => return None,
            Fallocate(at, mode, offset, len) => Fallocate(file(at)?, *mode, *offset, *len),
            Copy(from, from_offset, to, to_offset, len) => Copy(file(from)?, *from_offset, file(to)?, *to_offset, *len),
            Chmod(at, m) => Chmod(Some(path(at)).filter(|path| !tree.is_symlink(path))?, mode(*m)),
            Chown(_, None, None) => return None,
            Chown(..) if !features.root => return None,
            Chown(at, uid, gid) => Chown(path(at), *uid, *gid),
            SetTimes(at, secs) => SetTimes(path(at), *secs),
            SetXattr(at, name, value, flag) if xattr(name) => SetXattr(path(at), name, value.clone(), *flag),
            RemoveXattr(at, name) if xattr(name) => RemoveXattr(path(at), name),
            SetXattr(..) | RemoveXattr(..) => return None,
            List(at) => List(path(at)),
            Open(at) => Open(file(at)?),
            WriteOpen(which, offset, data) => WriteOpen(*which, *offset, data.clone()),
            ReadOpen(which) => ReadOpen(*which),
            Close(which) => Close(*which),
        })
    }
}
