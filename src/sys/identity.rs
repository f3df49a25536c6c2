//! Files of this machine with the rights of somebody else (credentials(7)): for one thread, and for a while.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, User, getgrouplist, getgroups, setfsgid, setfsuid};

/// The supplementary groups that a login of `uid` would have besides `gid`, by the databases of this machine; none if
/// these do not know the user.
pub fn groups_of(uid: u32, gid: u32) -> io::Result<Vec<u32>> {
    let Some(user) = User::from_uid(Uid::from_raw(uid))? else { return Ok(Vec::new()) };
    let name = CString::new(user.name)?;
    let groups = getgrouplist(&name, Gid::from_raw(gid))?;
    Ok(groups.into_iter().map(Gid::as_raw).filter(|&group| group != gid).collect())
}

/// Whether this process is root of the machine, and so has rights in the directories of all users: not so the root of a
/// user namespace.
pub fn is_root_of_machine() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let all = map.split_whitespace().eq(["0", "0", "4294967295"]);
    nix::unistd::geteuid().is_root() && (all || map.is_empty())
}

/// As long as it lives, this thread and those it starts reach files as somebody else. Threads keep what they began with.
pub struct AssumedIdentity {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    /// It belongs to one thread.
    _of_this_thread: PhantomData<*const ()>,
}

/// Reaches files as this user, with this group and these supplementary ones, from now on. All of it or an error.
pub fn assume(uid: u32, gid: u32, groups: &[u32]) -> io::Result<AssumedIdentity> {
    // Nobody has this id; the answer is the one in force.
    let (uid_now, gid_now) = (setfsuid(Uid::from_raw(u32::MAX)), setfsgid(Gid::from_raw(u32::MAX)));
    let before = AssumedIdentity { uid: uid_now, gid: gid_now, groups: getgroups()?, _of_this_thread: PhantomData };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let _dumpable = KeptDumpable::now();
    set_groups(&groups.iter().copied().map(Gid::from_raw).collect::<Vec<_>>())?;
    setfsgid(gid);
    setfsuid(uid);
    // These tell of no error.
    if (setfsuid(Uid::from_raw(u32::MAX)), setfsgid(Gid::from_raw(u32::MAX))) != (uid, gid) {
        return Err(Errno::EPERM.into());
    }
    Ok(before)
}

impl Drop for AssumedIdentity {
    fn drop(&mut self) {
        let _dumpable = KeptDumpable::now();
        // What fails leaves this thread with fewer rights than it had, never with more.
        setfsuid(self.uid);
        setfsgid(self.gid);
        let _ = set_groups(&self.groups);
    }
}

/// Whether this process may be dumped and traced, as it was: a change of ids sets it to what `fs.suid_dumpable` says
/// (prctl(2), `PR_SET_DUMPABLE`).
struct KeptDumpable(bool);

impl KeptDumpable {
    fn now() -> Self {
        Self(prctl::get_dumpable().unwrap_or(false))
    }
}

impl Drop for KeptDumpable {
    fn drop(&mut self) {
        let _ = prctl::set_dumpable(self.0);
    }
}

/// setgroups(2) of this thread alone; the function of the C library would change all threads.
fn set_groups(groups: &[Gid]) -> io::Result<()> {
    // SAFETY: the kernel reads `len` group ids; `Gid` is a transparent wrapper of one. nix offers setgroups(3) only.
    let answer = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_thread_and_its_children_have_the_rights_of_somebody_else_for_a_while() {
        if !nix::unistd::geteuid().is_root() {
            return println!("SKIP: not root");
        }
        let dir = tempfile::tempdir().expect("tempdir");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("set");
        let (closed, shared) = (dir.path().join("closed"), dir.path().join("shared"));
        fs::write(&closed, "").expect("written");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).expect("set");
        fs::write(&shared, "").expect("written");
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o640)).expect("set");
        std::os::unix::fs::chown(&shared, None, Some(4999)).expect("owned");
        let reads = |path| fs::read(path).is_ok();
        let before = getgroups().expect("groups");
        {
            let _as_user = assume(4001, 4001, &[4999]).expect("root may");
            assert!(!reads(&closed) && reads(&shared) && fs::write(dir.path().join("new"), "").is_err());
            std::thread::scope(|scope| {
                let inside = scope.spawn(|| (reads(&closed), reads(&shared)));
                assert_eq!(inside.join().expect("ended"), (false, true));
            });
        }
        assert!(reads(&closed) && fs::write(dir.path().join("new"), "").is_ok());
        assert_eq!(getgroups().expect("groups"), before);
    }

    #[test]
    fn a_user_nobody_knows_has_no_groups() {
        assert!(groups_of(3_999_999_999, 7).expect("looked up").is_empty());
        assert!(!groups_of(0, 0).expect("looked up").contains(&0));
    }
}
