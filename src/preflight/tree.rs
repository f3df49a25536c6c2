//! What is to be staged, as one tree of names; pure, no input or output happens here.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::hash::BuildHasher;
use std::path::{Component, Path, PathBuf};

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use crate::aws::Object;
use crate::spec::S3Uri;
use crate::sys::path::{FileKind, Stat};

/// The input directory itself, parent of all.
pub(crate) const TOP: u32 = 0;

/// One name below the input directory.
#[derive(Debug)]
pub(crate) struct Item {
    /// The directory it is in: a smaller index of the same tree.
    pub(crate) parent: u32,
    /// Its name there.
    pub(crate) name: OsString,
    /// Where it comes from.
    pub(crate) origin: Origin,
}

/// Where an [`Item`] comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Origin {
    /// A directory that exists only because an input is to appear below it.
    Implied,
    /// Named on the command line: an index of [`Tree::inputs`].
    Input(u32, Stat),
    /// Found below a directory named on the command line; it has the same name and parent there.
    Below(Stat),
    /// What a symbolic link leads to, in its place: an index of [`Tree::linked`].
    Linked(u32, Stat),
    /// An object of S3: an index of [`Tree::objects`].
    Object(u32),
}

impl Item {
    /// What preflight saw outside; `None` for an implied directory.
    pub(crate) fn seen(&self) -> Option<&Stat> {
        match &self.origin {
            Origin::Implied | Origin::Object(_) => None,
            Origin::Input(_, seen) | Origin::Below(seen) | Origin::Linked(_, seen) => Some(seen),
        }
    }

    /// Size of a regular file of this machine; 0 for everything else.
    pub(crate) fn bytes(&self) -> u64 {
        self.seen().filter(|s| s.kind == FileKind::File).map_or(0, |s| s.size)
    }
}

/// An object to be staged.
#[derive(Clone, Debug)]
pub(crate) struct RemoteObject {
    /// The input it belongs to, by position on the command line.
    pub(crate) input: u32,
    /// Where it is; the whole key.
    pub(crate) uri: S3Uri,
    /// What preflight saw.
    pub(crate) seen: Object,
}

/// Every item, parents before children, the input directory itself first.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The inputs as paths that stay valid when the working directory changes.
    pub(crate) inputs: Vec<PathBuf>,
    /// What is copied in place of links, as paths without any link.
    pub(crate) linked: Vec<PathBuf>,
    /// By item: texts of symbolic links that are not what they are outside.
    pub(crate) texts: HashMap<u32, OsString>,
    /// All names.
    pub(crate) items: Vec<Item>,
    /// What items of S3 are.
    pub(crate) objects: Vec<RemoteObject>,
    names: HashTable<u32>,
}

/// A name that two inputs claim: the item that has it already.
#[derive(Debug, PartialEq)]
pub(crate) struct NameConflict(pub(crate) u32);

impl Tree {
    pub(crate) fn new(inputs: Vec<PathBuf>) -> Self {
        let top = Item { parent: TOP, name: OsString::new(), origin: Origin::Implied };
        let (linked, texts) = (Vec::new(), HashMap::new());
        Self { inputs, linked, texts, items: vec![top], objects: Vec::new(), names: HashTable::new() }
    }

    /// The object that an item is, if it is one.
    pub(crate) fn object(&self, item: u32) -> Option<&RemoteObject> {
        match self.items[item as usize].origin {
            Origin::Object(object) => Some(&self.objects[object as usize]),
            Origin::Implied | Origin::Input(..) | Origin::Below(_) | Origin::Linked(..) => None,
        }
    }

    /// What an item becomes in the scratch.
    pub(crate) fn kind(&self, item: u32) -> FileKind {
        match self.object(item) {
            Some(_) => FileKind::File,
            None => self.items[item as usize].seen().map_or(FileKind::Directory, |seen| seen.kind),
        }
    }

    /// Bytes of all files, holes included.
    pub(crate) fn bytes(&self) -> u64 {
        let local = self.items.iter().map(Item::bytes).sum::<u64>();
        local + self.objects.iter().map(|object| object.seen.size).sum::<u64>()
    }

    /// Path outside; of an implied directory, the path of some input below it.
    pub(crate) fn source(&self, item: u32) -> PathBuf {
        let mut at = item;
        let mut names = Vec::new();
        loop {
            let Item { parent, name, origin } = &self.items[at as usize];
            match origin {
                Origin::Input(input, _) => return extended(self.inputs[*input as usize].clone(), &names),
                Origin::Linked(path, _) => return extended(self.linked[*path as usize].clone(), &names),
                Origin::Below(_) => names.push(name.as_os_str()),
                Origin::Object(object) => {
                    return PathBuf::from(self.objects[*object as usize].uri.to_string());
                }
                Origin::Implied => return self.some_source_below(at),
            }
            at = *parent;
        }
    }

    fn some_source_below(&self, item: u32) -> PathBuf {
        let child = self.items.iter().skip(1).position(|i| i.parent == item);
        child.map_or_else(PathBuf::new, |child| self.source(child as u32 + 1))
    }

    /// Path relative to the input directory.
    pub(crate) fn target(&self, item: u32) -> PathBuf {
        let mut at = item;
        let mut names = Vec::new();
        while at != TOP {
            names.push(self.items[at as usize].name.as_os_str());
            at = self.items[at as usize].parent;
        }
        extended(PathBuf::new(), &names)
    }

    /// Makes room for an input at `target` (checked with [`valid_target`]): the parent and name to [`Tree::claim`].
    pub(crate) fn imply<'a>(&mut self, target: &'a Path) -> Result<(u32, &'a OsStr), NameConflict> {
        let mut parts = target.iter().filter(|part| *part != ".");
        let name = parts.next_back().unwrap_or_default();
        let mut parent = TOP;
        for part in parts {
            parent = match self.find(parent, part) {
                Some(taken) if self.kind(taken) != FileKind::Directory => return Err(NameConflict(taken)),
                Some(directory) => directory,
                None => self.push(parent, part, Origin::Implied),
            };
        }
        Ok((parent, name))
    }

    /// Puts an item in its place, which must be free or a directory implied so far.
    pub(crate) fn claim(&mut self, parent: u32, name: &OsStr, origin: Origin) -> Result<u32, NameConflict> {
        let Some(there) = self.find(parent, name) else { return Ok(self.push(parent, name, origin)) };
        let item = &mut self.items[there as usize];
        let is_directory = match origin {
            Origin::Input(_, seen) | Origin::Below(seen) | Origin::Linked(_, seen) => seen.kind == FileKind::Directory,
            Origin::Implied | Origin::Object(_) => false,
        };
        if item.origin != Origin::Implied || !is_directory {
            return Err(NameConflict(there));
        }
        item.origin = origin;
        Ok(there)
    }

    fn find(&self, parent: u32, name: &OsStr) -> Option<u32> {
        let same = |i: &u32| self.items[*i as usize].parent == parent && self.items[*i as usize].name == name;
        self.names.find(hash(parent, name), same).copied()
    }

    fn push(&mut self, parent: u32, name: &OsStr, origin: Origin) -> u32 {
        let item = u32::try_from(self.items.len()).expect("a tree of four billion names does not fit in memory");
        self.items.push(Item { parent, name: name.to_owned(), origin });
        let items = &self.items;
        let hash_of = |i: &u32| hash(items[*i as usize].parent, &items[*i as usize].name);
        self.names.insert_unique(hash(parent, name), item, hash_of);
        item
    }
}

/// Why `target` cannot be a path below the input directory.
pub(crate) fn valid_target(target: &Path) -> Result<(), &'static str> {
    let mut names = 0;
    for part in target.components() {
        match part {
            Component::Normal(name) if name.len() > 255 => return Err("a name in it is longer than 255 bytes"),
            Component::Normal(_) => names += 1,
            Component::CurDir => {}
            Component::ParentDir => return Err("it contains `..`"),
            Component::RootDir | Component::Prefix(_) => return Err("it is absolute"),
        }
    }
    if names == 0 { Err("it names nothing") } else { Ok(()) }
}

fn hash(parent: u32, name: &OsStr) -> u64 {
    FxBuildHasher.hash_one((parent, name))
}

fn extended(mut path: PathBuf, names_from_the_end: &[&OsStr]) -> PathBuf {
    path.extend(names_from_the_end.iter().rev());
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(kind: FileKind) -> Stat {
        let time = (0, 0);
        Stat { kind, mode: 0, uid: 0, gid: 0, dev: 0, ino: 0, size: 7, blocks: 0, mtime: time, ctime: time }
    }

    fn put(tree: &mut Tree, input: u32, target: &str, kind: FileKind) -> Result<u32, NameConflict> {
        let (parent, name) = tree.imply(Path::new(target))?;
        tree.claim(parent, name, Origin::Input(input, seen(kind)))
    }

    #[test]
    fn paths_lead_back_to_their_source() {
        let mut tree = Tree::new(vec!["/data/set".into(), "/data/one".into()]);
        let set = put(&mut tree, 0, "a/./b/set", FileKind::Directory).unwrap();
        let file = tree.claim(set, OsStr::new("file"), Origin::Below(seen(FileKind::File))).unwrap();
        let one = put(&mut tree, 1, "a/b/set/more/one", FileKind::File).unwrap();
        assert_eq!(tree.source(file), Path::new("/data/set/file"));
        assert_eq!(tree.target(file), Path::new("a/b/set/file"));
        assert_eq!(tree.source(one), Path::new("/data/one"));
        assert_eq!(tree.target(one), Path::new("a/b/set/more/one"));
        assert!(tree.items.iter().enumerate().skip(1).all(|(i, item)| (item.parent as usize) < i));
    }

    #[test]
    fn a_directory_takes_the_place_of_an_implied_one() {
        let mut tree = Tree::new(vec!["/one".into(), "/set".into()]);
        put(&mut tree, 0, "set/sub/one", FileKind::File).unwrap();
        let set = put(&mut tree, 1, "set", FileKind::Directory).unwrap();
        let sub = tree.claim(set, OsStr::new("sub"), Origin::Below(seen(FileKind::Directory))).unwrap();
        assert_eq!(tree.source(sub), Path::new("/set/sub"));
        assert!(tree.claim(sub, OsStr::new("one"), Origin::Below(seen(FileKind::File))).is_err());
    }

    #[test]
    fn claims_that_collide_are_refused() {
        use FileKind::{Directory, File};
        for (first, second) in [
            (("x", File), ("x", File)),
            (("x", Directory), ("x", Directory)),
            (("x", File), ("x/y", File)),
            (("x/y", File), ("x", File)),
            (("./x", File), ("x/", File)),
        ] {
            let mut tree = Tree::new(vec!["/1".into(), "/2".into()]);
            put(&mut tree, 0, first.0, first.1).unwrap();
            let NameConflict(there) = put(&mut tree, 1, second.0, second.1).unwrap_err();
            assert_eq!(tree.source(there), Path::new("/1"), "{first:?} {second:?}");
        }
    }

    #[test]
    fn targets_stay_below_the_input_directory() {
        for good in ["a", "a/b", "./a", "a/", "..."] {
            assert_eq!(valid_target(Path::new(good)), Ok(()), "{good}");
        }
        for bad in ["", ".", "./", "/", "/a", "..", "a/..", "a/../b"] {
            assert!(valid_target(Path::new(bad)).is_err(), "{bad}");
        }
        assert!(valid_target(Path::new(&"n".repeat(255))).is_ok());
        assert!(valid_target(Path::new(&"n".repeat(256))).is_err());
    }
}
