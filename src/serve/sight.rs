//! Whether others see what is mounted here: the node (process 1) and whoever asks may live in mount namespaces of their own,
//! and would write into the bare directory, in the clear.
//!
//! Only tables of mounts are read. No path is walked in a view of others: they may have put a file system there that never
//! answers.

use std::io;
use std::path::{Path, PathBuf};

use super::peer::Caller;
use crate::sys::mount::{MountEntry, mount_of, mount_table, mount_table_of, top_mount};
use crate::sys::path::shown;

/// Whose mounts are those of the node.
const NODE: u32 = 1;
/// Most mounts of one file system that are looked at for a caller.
const MOST_PLACES: usize = 64;
/// Type of a scratch.
const SCRATCH: &str = "fuse.runseal";
const REMEDY: &str = "let the service share the node's mounts: no PrivateTmp, ProtectSystem or the like in its unit; in a \
                      container hostPID or --pid=host, and mounts.roots bound with Bidirectional or rshared propagation";

/// What stands between the mounts made below `roots` and those who are to see them: the node and, if there is one, the
/// caller. Looks at namespaces and propagation; only [`prove`] knows about a mount.
pub fn obstacles<'a>(roots: impl Iterator<Item = &'a Path>, caller: Option<Caller>) -> Vec<String> {
    let own = match mount_table() {
        Ok(table) => table,
        Err(error) => return vec![format!("the mounts of the service cannot be read: {error}")],
    };
    let witnesses = match Witness::all(caller) {
        Ok(witnesses) => witnesses,
        Err(problem) => return vec![problem],
    };
    let roots: Vec<_> = roots.collect();
    let mut found = Vec::new();
    for witness in witnesses.iter().filter(|witness| !witness.shares(&own)) {
        found.extend(roots.iter().filter_map(|root| witness.misses_root(root, &own)));
    }
    found
}

/// Fails unless the scratch that has just been mounted is where the node and the caller look: its device, with the type of
/// a scratch, on top.
pub fn prove(mountpoint: &Path, caller: Caller) -> Result<(), String> {
    let own = mount_table().map_err(|error| format!("the mounts of the service cannot be read: {error}"))?;
    let mount = top_mount(&own, mountpoint).filter(|mount| mount.fs_type == SCRATCH).ok_or_else(|| {
        format!("mountpoint {}: the scratch is not there; something has unmounted or covered it", shown(mountpoint))
    })?;
    let witnesses = Witness::all(Some(caller))?;
    witnesses.iter().try_for_each(|witness| witness.sees(mount, &own))
}

/// The mounts that somebody sees.
struct Witness {
    name: String,
    /// Whether every mount must be seen, not only where its directory is.
    must_see: bool,
    table: Vec<MountEntry>,
}

impl Witness {
    fn all(caller: Option<Caller>) -> Result<Vec<Self>, String> {
        let node = mount_table_of(NODE).map_err(|error| {
            format!("the mounts of process 1 cannot be read: {error}; where hidepid hides it, give the service CAP_SYS_PTRACE")
        })?;
        let mut all = vec![Self { name: "the node (process 1)".to_owned(), must_see: true, table: node }];
        let Some(process) = caller.map(|caller| caller.process) else { return Ok(all) };
        let process = process.ok_or_else(|| {
            format!("whoever asks is in a PID namespace that the service cannot look into, nor tell what is seen there; {REMEDY}")
        })?;
        match mount_table_of(process) {
            Ok(table) => all.push(Self { name: format!("process {process}, which asks"), must_see: false, table }),
            // It has gone, and sees nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("the mounts of process {process}, which asks, cannot be read: {error}")),
        }
        Ok(all)
    }

    /// Whether this is the mount namespace of `own`: ids of mounts are unique in the machine.
    fn shares(&self, own: &[MountEntry]) -> bool {
        own.iter().any(|mount| self.table.iter().any(|other| other.id == mount.id))
    }

    fn misses_root(&self, root: &Path, own: &[MountEntry]) -> Option<String> {
        let from = mount_of(own, root)?;
        let (mut seen, mut cut_off) = (false, None);
        for (to, place) in self.places(&within(from, root), from) {
            seen = true;
            let receives = from.shared.is_some() && (to.shared == from.shared || to.master.is_some());
            cut_off = cut_off.or((!receives).then_some(place));
        }
        match cut_off {
            Some(place) => Some(format!(
                "{} sees {} at {}, but not what the service mounts there: the service has a mount namespace of its own; {REMEDY}",
                self.name,
                shown(root),
                shown(&place)
            )),
            None if !seen && self.must_see => Some(format!("{} does not see {}; {REMEDY}", self.name, shown(root))),
            None => None,
        }
    }

    fn sees(&self, mount: &MountEntry, own: &[MountEntry]) -> Result<(), String> {
        if self.table.iter().any(|other| other.id == mount.id) {
            return Ok(());
        }
        let mountpoint = shown(&mount.mountpoint);
        let below = own.iter().find(|other| other.id == mount.parent);
        let bare = below.and_then(|below| self.places(&within(below, &mount.mountpoint), below).next());
        if let Some((_, place)) = bare {
            return Err(format!(
                "mountpoint {mountpoint}: {} sees a bare directory at {} instead of the scratch; {REMEDY}",
                self.name,
                shown(&place)
            ));
        }
        let is_there = |other: &MountEntry| {
            other.device == mount.device && other.fs_type == mount.fs_type && self.is_on_top(other, &other.mountpoint)
        };
        if self.must_see && !self.table.iter().any(is_there) {
            return Err(format!("mountpoint {mountpoint}: {} does not see the scratch; {REMEDY}", self.name));
        }
        Ok(())
    }

    /// Where the directory `inside` of the file system of `from` is in sight, and through which mount. Of a caller only as
    /// many are looked at as an honest one has: each takes time.
    fn places(&self, inside: &Path, from: &MountEntry) -> impl Iterator<Item = (&MountEntry, PathBuf)> {
        let most = if self.must_see { usize::MAX } else { MOST_PLACES };
        let holding = self.table.iter().filter_map(move |mount| {
            let rest = inside.strip_prefix(&mount.root).ok().filter(|_| mount.device == from.device)?;
            Some((mount, rest.to_owned()))
        });
        holding.take(most).filter_map(move |(mount, rest)| {
            let place =
                if rest.as_os_str().is_empty() { mount.mountpoint.clone() } else { mount.mountpoint.join(rest) };
            self.is_on_top(mount, &place).then_some((mount, place))
        })
    }

    fn is_on_top(&self, mount: &MountEntry, place: &Path) -> bool {
        mount_of(&self.table, place).is_some_and(|top| top.id == mount.id)
    }
}

/// The path of `place`, which lies in `mount`, from the root of its file system.
fn within(mount: &MountEntry, place: &Path) -> PathBuf {
    let rest = place.strip_prefix(&mount.mountpoint).unwrap_or(Path::new(""));
    if rest.as_os_str().is_empty() { mount.root.clone() } else { mount.root.join(rest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u64, parent: u64, minor: u32, root: &str, mountpoint: &str, fs_type: &str) -> MountEntry {
        MountEntry {
            id,
            parent,
            device: (0, minor),
            root: root.into(),
            mountpoint: mountpoint.into(),
            shared: Some(id),
            master: None,
            fs_type: fs_type.into(),
            source: "runseal".into(),
            super_options: "rw".into(),
        }
    }

    fn own() -> [MountEntry; 2] {
        [entry(1, 1, 8, "/", "/", "ext4"), entry(2, 1, 40, "/", "/mnt/x", "fuse.runseal")]
    }

    fn witness(must_see: bool, table: Vec<MountEntry>) -> Witness {
        Witness { name: "it".to_owned(), must_see, table }
    }

    #[test]
    fn a_bare_directory_is_found_wherever_it_is_in_sight() {
        let own = own();
        let sees = |must_see, table: Vec<MountEntry>| witness(must_see, table).sees(&own[1], &own);
        sees(true, own.to_vec()).expect("the same namespace");
        let there = vec![entry(11, 11, 8, "/", "/", "ext4"), entry(12, 11, 40, "/", "/mnt/x", "fuse.runseal")];
        sees(true, there.clone()).expect("propagated");
        let said = sees(false, vec![entry(11, 11, 8, "/", "/", "ext4")]).expect_err("bare");
        assert!(said.contains("bare directory at /mnt/x") && said.contains("hostPID"), "{said}");
        let bound = vec![entry(21, 21, 9, "/", "/", "overlay"), entry(22, 21, 8, "/mnt", "/data", "ext4")];
        assert!(sees(false, bound.clone()).expect_err("bare").contains("/data/x"));
        let mut both = bound;
        both.push(entry(23, 22, 40, "/", "/data/x", "fuse.runseal"));
        sees(true, both).expect("propagated into the bind");
        let mut covered = there;
        covered.push(entry(13, 12, 50, "/", "/mnt/x", "tmpfs"));
        assert!(sees(true, covered).is_err(), "something is on top");
        let apart = vec![entry(31, 31, 9, "/", "/", "overlay")];
        sees(false, apart.clone()).expect("a caller without the directory writes nothing there");
        assert!(sees(true, apart).expect_err("the node must see it").contains("does not see"));
    }

    #[test]
    fn a_root_that_is_not_shared_is_told_before_anything_is_mounted() {
        let own = own();
        let told = |table: Vec<MountEntry>| witness(true, table).misses_root(Path::new("/mnt"), &own);
        let mut slave = entry(11, 11, 8, "/", "/", "ext4");
        (slave.shared, slave.master) = (None, Some(1));
        assert_eq!(told(vec![slave.clone()]), None);
        slave.master = None;
        assert!(told(vec![slave]).expect("private").contains("mount namespace of its own"));
        assert!(told(vec![entry(31, 31, 9, "/", "/", "overlay")]).expect("absent").contains("does not see"));
    }
}
