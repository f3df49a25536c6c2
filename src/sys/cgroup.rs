//! How much memory there is: of the machine, and of the cgroups around this process.

use std::fs;
use std::path::Path;

use super::mount::{MountEntry, mount_table};

/// Bytes of memory of the machine (proc_meminfo(5)).
pub fn memory_total() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Bytes of memory that this process can have: the least of the machine's and of the limits around it.
pub fn memory_limit() -> Option<u64> {
    cgroup_limits().into_iter().chain(memory_total()).min()
}

/// Memory limits in bytes of the cgroups this process is in, and of those around them, version 1 or 2 (cgroups(7)).
fn cgroup_limits() -> Vec<u64> {
    let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let table = mount_table().unwrap_or_default();
    memberships.lines().flat_map(|line| limits_of(line, &table)).collect()
}

/// The limits on the way from one membership (`id:controllers:path`) up to where its hierarchy is mounted.
fn limits_of(membership: &str, table: &[MountEntry]) -> Vec<u64> {
    let mut fields = membership.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Vec::new() };
    let (fs_type, file) = match controllers {
        "" => ("cgroup2", "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => ("cgroup", "memory.limit_in_bytes"),
        _ => return Vec::new(),
    };
    let of_memory = |entry: &MountEntry| {
        fs_type == "cgroup2" || entry.super_options.to_string_lossy().split(',').any(|option| option == "memory")
    };
    let Some(mount) = table.iter().find(|entry| entry.fs_type == fs_type && of_memory(entry)) else {
        return Vec::new();
    };
    // In a container the hierarchy may be mounted from a point below its root.
    let below = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(""));
    let leaf = mount.mountpoint.join(below);
    let groups = leaf.ancestors().take_while(|group| group.starts_with(&mount.mountpoint));
    groups.filter_map(|group| read(&group.join(file))).collect()
}

fn read(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn the_limits_of_all_groups_around_count() {
        let root = tempfile::tempdir().expect("a directory");
        let leaf = root.path().join("outer/inner");
        fs::create_dir_all(&leaf).expect("directories");
        fs::write(root.path().join("outer/memory.max"), "max\n").expect("a file");
        fs::write(leaf.join("memory.max"), "1048576\n").expect("a file");
        fs::write(leaf.join("memory.limit_in_bytes"), "2097152\n").expect("a file");
        fs::write(root.path().join("memory.limit_in_bytes"), "4194304\n").expect("a file");
        let entry = |fs_type: &str, options: &str, below: &str| MountEntry {
            id: 1,
            parent: 0,
            device: (0, 1),
            root: below.into(),
            mountpoint: root.path().to_owned(),
            shared: None,
            master: None,
            fs_type: fs_type.into(),
            source: "cgroup".into(),
            super_options: OsString::from(options),
        };
        let table = [entry("cgroup", "rw,cpu", "/"), entry("cgroup", "rw,memory", "/"), entry("cgroup2", "rw", "/box")];
        assert_eq!(limits_of("0::/box/outer/inner", &table), [1 << 20]);
        assert_eq!(limits_of("4:cpu,memory:/outer/inner", &table), [2 << 20, 4 << 20]);
        assert_eq!(limits_of("3:pids:/outer/inner", &table), [0; 0]);
        assert_eq!(limits_of("4:memory:/elsewhere", &table), [4 << 20]);
        assert_eq!(limits_of("garbage", &table), [0; 0]);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_total() > Some(1 << 20));
    }
}
