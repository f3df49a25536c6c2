//! Directories: entries in creation order, an index by name, and the life of a directory.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;

use super::inode::Inode;
use crate::fs::FsError;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{RwLock, rank};

/// Cookies of `.` and `..`; real entries start at [`PAGE`].
pub const COOKIE_SELF: u64 = 1;
/// See [`COOKIE_SELF`].
pub const COOKIE_PARENT: u64 = 2;

/// Cookies in a row that share a page.
const PAGE: u64 = 64;
/// Set in [`Directory::population`] once the directory is removed.
const DEAD: u64 = 1 << 63;
/// What one entry counts in the size of a directory, as on tmpfs.
const ENTRY_SIZE: u64 = 20;
/// Bytes of memory that an entry counts as, without its name: its place in a page, in the index, and a page.
const ENTRY_MEMORY: u64 = 160;
/// The same for a directory: its own fields, a page and an index.
pub const DIRECTORY_MEMORY: u64 = 832;

/// The directory part of an inode.
pub struct Directory {
    pub entries: RwLock<{ rank::ENTRIES }, Entries>,
    /// Inode number behind `..`; changed under the rename mutex only.
    parent: AtomicU64,
    /// Entries there are or are about to be, and [`DEAD`]. It decides between a thread that inserts (holding this
    /// directory's lock) and one that removes the directory (holding its parent's) without either waiting.
    population: AtomicU64,
}

impl Directory {
    pub fn new(parent: u64) -> Self {
        Self { entries: RwLock::new(Entries::default()), parent: AtomicU64::new(parent), population: AtomicU64::new(0) }
    }

    pub fn parent(&self) -> u64 {
        self.parent.load(Ordering::Acquire)
    }

    pub fn set_parent(&self, ino: u64) {
        self.parent.store(ino, Ordering::Release);
    }

    pub fn is_dead(&self) -> bool {
        self.population.load(Ordering::Acquire) & DEAD != 0
    }

    pub fn size(&self) -> u64 {
        ((self.population.load(Ordering::Relaxed) & !DEAD) + 2) * ENTRY_SIZE
    }

    /// Announces an entry; a removed directory takes none.
    pub fn reserve(&self) -> Result<(), FsError> {
        self.population
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n & DEAD == 0).then_some(n + 1))
            .map_err(|_| FsError::NotFound)?;
        Ok(())
    }

    /// An entry is gone, or did not come after [`Directory::reserve`].
    pub fn release(&self) {
        self.population.fetch_sub(1, Ordering::AcqRel);
    }

    /// Removes the directory if it is empty.
    pub fn die(&self) -> Result<(), FsError> {
        self.population
            .compare_exchange(0, DEAD, Ordering::AcqRel, Ordering::Acquire)
            .map_err(|_| FsError::NotEmpty)?;
        Ok(())
    }
}

/// The entries of a directory: name to inode, each with a cookie that grows with the time of creation.
///
/// Entries live in pages of 64 cookies in a row. That costs half of a tree with a node per entry. A page holds no gaps,
/// and leaves when its last entry does.
#[derive(Default)]
pub struct Entries {
    /// Cookie / [`PAGE`] to its page. No page is empty.
    pages: BTreeMap<u64, EntryPage>,
    index: HashTable<NameSlot>,
    /// Keyed at random: names that collide on purpose cannot be found.
    hasher: RandomState,
    next: u64,
}

#[derive(Default)]
struct EntryPage {
    /// A bit for each cookie that has an entry.
    live: u64,
    /// Those entries, by cookie.
    entries: Vec<Binding>,
}

struct Binding {
    name: Box<[u8]>,
    inode: Arc<Inode>,
}

/// The cookie of a name. Half of the hash is kept so that a growing index needs not look at the names again.
#[derive(Clone, Copy)]
#[repr(C, packed(4))]
struct NameSlot {
    cookie: u64,
    hash: u32,
}

impl Entries {
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Inode>> {
        let cookie = self.cookie(name)?;
        Some(&entry(&self.pages, cookie).inode)
    }

    /// Adds an entry. `name` is not there yet.
    pub fn insert(&mut self, name: &[u8], inode: Arc<Inode>) {
        let cookie = self.next_cookie();
        let page = self.pages.entry(cookie / PAGE).or_default();
        page.push(cookie % PAGE, Binding { name: name.into(), inode });
        self.next = cookie + 1;
        self.index_name(name, cookie);
    }

    /// Takes an entry out.
    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Inode>> {
        let cookie = self.unindex_name(name)?;
        let number = cookie / PAGE;
        let page = self.pages.get_mut(&number).expect("an indexed cookie has its page");
        let entry = page.remove(cookie % PAGE);
        if page.live == 0 {
            self.pages.remove(&number);
        }
        self.shrink();
        Some(entry.inode)
    }

    /// Puts another inode behind an existing name; the place in the listing stays.
    pub fn replace(&mut self, name: &[u8], inode: Arc<Inode>) -> Option<Arc<Inode>> {
        let cookie = self.cookie(name)?;
        Some(std::mem::replace(&mut self.entry_mut(cookie).inode, inode))
    }

    /// Gives an entry a name that is not there yet. It keeps its place in the listing: a program that renames what
    /// it lists comes to an end.
    pub fn rename(&mut self, old: &[u8], new: &[u8]) {
        let Some(cookie) = self.unindex_name(old) else { return };
        self.entry_mut(cookie).name = new.into();
        self.index_name(new, cookie);
    }

    /// Entries behind `cookie` in the order of their creation.
    pub fn after(&self, cookie: u64) -> impl Iterator<Item = (u64, &[u8], &Arc<Inode>)> {
        let from = cookie.saturating_add(1);
        let pages = self.pages.range(from / PAGE..);
        pages.flat_map(|(number, page)| page.entries(number * PAGE)).skip_while(move |entry| entry.0 < from)
    }

    /// The next cookie. A page that has emptied and left never comes back.
    fn next_cookie(&self) -> u64 {
        let next = self.next.max(PAGE);
        if !next.is_multiple_of(PAGE) && !self.pages.contains_key(&(next / PAGE)) {
            next.next_multiple_of(PAGE)
        } else {
            next
        }
    }

    fn cookie(&self, name: &[u8]) -> Option<u64> {
        let hash = self.hash(name);
        self.index.find(spread(hash), is_name(&self.pages, name, hash)).map(|slot| slot.cookie)
    }

    fn index_name(&mut self, name: &[u8], cookie: u64) {
        let hash = self.hash(name);
        self.index.insert_unique(spread(hash), NameSlot { cookie, hash }, |slot| spread(slot.hash));
    }

    fn unindex_name(&mut self, name: &[u8]) -> Option<u64> {
        let hash = self.hash(name);
        let slot = self.index.find_entry(spread(hash), is_name(&self.pages, name, hash)).ok()?;
        Some(slot.remove().0.cookie)
    }

    fn entry_mut(&mut self, cookie: u64) -> &mut Binding {
        let page = self.pages.get_mut(&(cookie / PAGE)).expect("an indexed cookie has its page");
        let at = page.rank(cookie % PAGE);
        &mut page.entries[at]
    }

    fn hash(&self, name: &[u8]) -> u32 {
        self.hasher.hash_one(name) as u32
    }

    /// Gives memory back after most entries have gone.
    fn shrink(&mut self) {
        if self.index.capacity() > 16 && self.index.len() < self.index.capacity() / 4 {
            self.index.shrink_to(self.index.len() * 2, |slot| spread(slot.hash));
        }
    }
}

impl EntryPage {
    /// The entries with their cookies, the first of the page being `first`.
    fn entries(&self, first: u64) -> impl Iterator<Item = (u64, &[u8], &Arc<Inode>)> {
        let cookies = (0..PAGE).filter(|slot| self.live & (1 << slot) != 0).map(move |slot| first + slot);
        cookies.zip(&self.entries).map(|(cookie, entry)| (cookie, &*entry.name, &entry.inode))
    }

    /// How many entries are before this slot.
    fn rank(&self, slot: u64) -> usize {
        (self.live & ((1 << slot) - 1)).count_ones() as usize
    }

    /// Adds an entry behind all that there are.
    fn push(&mut self, slot: u64, entry: Binding) {
        debug_assert!(self.live >> slot == 0, "cookies grow");
        self.live |= 1 << slot;
        self.entries.push(entry);
    }

    fn remove(&mut self, slot: u64) -> Binding {
        let entry = self.entries.remove(self.rank(slot));
        self.live &= !(1 << slot);
        if self.entries.capacity() > 2 * self.entries.len() {
            self.entries.shrink_to_fit();
        }
        entry
    }
}

/// Bytes of memory that an entry with this name counts as.
pub fn entry_memory(name: &[u8]) -> u64 {
    ENTRY_MEMORY + name.len() as u64
}

fn entry(pages: &BTreeMap<u64, EntryPage>, cookie: u64) -> &Binding {
    let page = &pages[&(cookie / PAGE)];
    &page.entries[page.rank(cookie % PAGE)]
}

fn is_name(pages: &BTreeMap<u64, EntryPage>, name: &[u8], hash: u32) -> impl Fn(&NameSlot) -> bool {
    move |slot| slot.hash == hash && *entry(pages, slot.cookie).name == *name
}

/// Spreads half a hash over all bits: the index takes places from the low and tags from the high ones.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(debug_assertions)]
impl Directory {
    /// Asserts the invariants of the entries, and that as many are counted; hands them to `visit`. Nothing may change
    /// meanwhile.
    pub fn check(&self, visit: impl FnMut((u64, &[u8], &Arc<Inode>))) {
        let entries = self.entries.read();
        let count = entries.check();
        assert_eq!(self.population.load(Ordering::Acquire) & !DEAD, count, "entries counted and entries there");
        assert!(!self.is_dead() || count == 0, "a removed directory has entries");
        entries.after(0).for_each(visit);
    }
}

#[cfg(debug_assertions)]
impl Entries {
    /// Asserts that each page holds what its bits say, and the index each name; returns how many.
    fn check(&self) -> u64 {
        let mut count = 0;
        for (number, page) in &self.pages {
            assert!(page.live != 0, "page {number} is empty");
            assert_eq!(page.live.count_ones() as usize, page.entries.len(), "bits and entries of page {number}");
            for (cookie, name, _) in page.entries(number * PAGE) {
                assert_eq!(self.cookie(name), Some(cookie), "the index knows another place");
                assert!(cookie > COOKIE_PARENT && cookie < self.next, "cookie {cookie} was not given");
                count += 1;
            }
        }
        assert_eq!(self.index.len() as u64, count, "names in the index and entries");
        count
    }
}

#[cfg(test)]
mod tests {
    use super::super::inode::{Meta, Node};
    use super::*;
    use crate::fs::{Kind, Time};

    fn inode(ino: u64) -> Arc<Inode> {
        let meta = Meta::root(0, 0, 0, Time::default());
        Arc::new(Inode::new(ino, meta, Node::Special { kind: Kind::Fifo, rdev: 0 }))
    }

    fn inos(entries: &Entries) -> Vec<u64> {
        entries.check();
        entries.after(0).map(|(_, _, inode)| inode.ino).collect()
    }

    fn filled(n: u64) -> Entries {
        let mut entries = Entries::default();
        (0..n).for_each(|i| entries.insert(&i.to_le_bytes(), inode(i)));
        entries
    }

    #[test]
    fn entries_are_found_by_name_and_listed_by_age() {
        let mut entries = filled(1000);
        assert_eq!(entries.get(&999u64.to_le_bytes()).map(|inode| inode.ino), Some(999));
        assert!(entries.get(b"none").is_none() && entries.remove(b"none").is_none());
        assert_eq!(inos(&entries), (0..1000).collect::<Vec<_>>());
        (0..1000u64).filter(|i| i % 3 != 0).for_each(|i| assert_eq!(entries.remove(&i.to_le_bytes()).unwrap().ino, i));
        assert_eq!(inos(&entries), (0..1000).filter(|i| i % 3 == 0).collect::<Vec<_>>());
    }

    #[test]
    fn cookies_grow_and_never_come_back() {
        let mut entries = Entries::default();
        let mut last = COOKIE_PARENT;
        for i in 0..500 {
            entries.insert(b"n", inode(i));
            let cookie = entries.after(0).next().unwrap().0;
            assert!(cookie > last, "{cookie} after {last}");
            last = cookie;
            if i % 3 == 0 {
                entries.insert(b"m", inode(i));
                entries.remove(b"n");
                entries.remove(b"m");
            } else {
                entries.remove(b"n");
            }
        }
        assert!(entries.pages.is_empty());
    }

    #[test]
    fn renaming_and_replacing_keep_the_place() {
        let mut entries = filled(3);
        entries.rename(&0u64.to_le_bytes(), b"new");
        assert_eq!(entries.replace(&1u64.to_le_bytes(), inode(7)).unwrap().ino, 1);
        assert!(entries.replace(b"none", inode(8)).is_none());
        assert_eq!(inos(&entries), [0, 7, 2]);
        assert!(entries.get(&0u64.to_le_bytes()).is_none());
        assert_eq!(entries.get(b"new").unwrap().ino, 0);
    }

    #[test]
    fn an_emptied_directory_gives_its_memory_back() {
        let mut entries = filled(10_000);
        let full = entries.index.capacity();
        (0..9_990u64).for_each(|i| drop(entries.remove(&i.to_le_bytes())));
        assert!(entries.index.capacity() < full / 16);
        assert!(entries.pages.len() <= 2);
        assert_eq!(inos(&entries), (9_990..10_000).collect::<Vec<_>>());
        assert!(entries.get(&9_995u64.to_le_bytes()).is_some());
    }

    #[test]
    fn listing_skips_few_gaps() {
        let mut entries = filled(64 * 100);
        (0..64 * 100).filter(|i| i % 64 != 63).for_each(|i: u64| drop(entries.remove(&i.to_le_bytes())));
        assert_eq!(entries.pages.len(), 100);
        (0..64 * 99).filter(|i| i % 64 == 63).for_each(|i: u64| drop(entries.remove(&i.to_le_bytes())));
        assert_eq!(entries.pages.len(), 1, "pages without entries are gone, so the first entry is found at once");
        assert_eq!(inos(&entries), [64 * 100 - 1]);
    }

    #[test]
    fn either_an_entry_or_death_comes_first() {
        let directory = Directory::new(1);
        directory.reserve().unwrap();
        assert!(matches!(directory.die(), Err(FsError::NotEmpty)));
        directory.release();
        directory.die().unwrap();
        assert!(directory.is_dead() && directory.size() == 2 * ENTRY_SIZE);
        assert!(matches!(directory.reserve(), Err(FsError::NotFound)));
        assert!(matches!(directory.die(), Err(FsError::NotEmpty)));
    }
}

#[cfg(all(test, feature = "loom"))]
mod interleavings {
    use loom::thread;

    use super::*;
    use crate::fs::{Kind, Time};
    use crate::sync::explore;

    fn insert(directory: &Directory, name: &[u8]) -> bool {
        let inode = Inode::new(
            7,
            super::super::Meta::root(0, 0, 0, Time::default()),
            super::super::Node::Special { kind: Kind::Fifo, rdev: 0 },
        );
        let mut entries = directory.entries.write();
        let reserved = directory.reserve().is_ok();
        if reserved {
            entries.insert(name, Arc::new(inode));
        }
        reserved
    }

    #[test]
    fn an_entry_comes_or_the_directory_dies() {
        explore(|| {
            let directory = Arc::new(Directory::new(1));
            let maker = directory.clone();
            let maker = thread::spawn(move || insert(&maker, b"a"));
            let died = directory.die().is_ok();
            let made = maker.join().expect("no panic");
            assert!(made != died, "made: {made}, died: {died}");
            directory.check(|_| ());
        });
    }

    #[test]
    fn what_dies_is_seen_empty() {
        explore(|| {
            let directory = Arc::new(Directory::new(1));
            insert(&directory, b"a");
            let remover = directory.clone();
            let remover = thread::spawn(move || {
                remover.entries.write().remove(b"a");
                remover.release();
            });
            if directory.die().is_ok() {
                directory.check(|_| ());
            }
            remover.join().expect("no panic");
        });
    }
}
