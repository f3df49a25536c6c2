//! INIT: which capabilities to ask the kernel for, and what is lost without them.

use fuser::{InitFlags, KernelConfig};

/// Largest READ and WRITE in bytes.
const MAX_REQUEST: u32 = 1 << 20;
/// Asynchronous requests (read-ahead, writeback) in flight at most.
const MAX_BACKGROUND: u16 = 64;
/// Number of them from which the kernel holds further ones back.
const CONGESTION: u16 = 48;

/// Capabilities that stand alone, each with what is lost without it.
///
/// Left out with a reason: ATOMIC_O_TRUNC (without OPEN the truncation would be lost), ASYNC_DIO (the kernel drops cached
/// pages before an asynchronous write and not after it, and what is read meanwhile stays stale), AUTO_INVAL_DATA and
/// EXPLICIT_INVAL_DATA (nothing changes behind the kernel's back), POSIX_LOCKS and FLOCK_LOCKS (the kernel keeps locks
/// itself), SETXATTR_EXT and ALLOW_IDMAP (fuser 0.18 cannot decode what follows from them).
const ALONE: [(InitFlags, &str); 9] = [
    (InitFlags::FUSE_NO_OPEN_SUPPORT, "every open and close costs a request"),
    (InitFlags::FUSE_NO_OPENDIR_SUPPORT, "every opendir and closedir costs a request"),
    (InitFlags::FUSE_PARALLEL_DIROPS, "lookups in one directory wait for each other"),
    (InitFlags::FUSE_CACHE_SYMLINKS, "every readlink costs a request"),
    (InitFlags::FUSE_DO_READDIRPLUS, "listing with attributes costs a request per entry"),
    (InitFlags::FUSE_READDIRPLUS_AUTO, "listing without attributes fetches them all the same"),
    (InitFlags::FUSE_POSIX_ACL, "POSIX ACLs are stored but not enforced"),
    (InitFlags::FUSE_DONT_MASK, "default ACLs are cut by the umask"),
    (InitFlags::FUSE_ABORT_ERROR, "an aborted session looks like an unmounted one"),
];

/// Cached writes; only good together: without the second, each write(2) asks for `security.capability` first.
const WRITEBACK: InitFlags = InitFlags::FUSE_WRITEBACK_CACHE.union(InitFlags::FUSE_HANDLE_KILLPRIV_V2);

/// What INIT settled.
#[derive(Clone, Debug)]
pub(super) struct Negotiation {
    /// Capabilities in force, of those asked for.
    pub granted: InitFlags,
    /// FUSE protocol of the kernel, `major.minor`.
    pub protocol: String,
    /// What is missing, each with its cost.
    pub degraded: Vec<String>,
}

impl Negotiation {
    /// Names of the capabilities in force, as in fuse.h without `FUSE_`.
    pub(super) fn names(&self) -> Vec<String> {
        self.granted.iter_names().map(|(name, _)| name.trim_start_matches("FUSE_").to_owned()).collect()
    }
}

/// Asks for everything wanted that the kernel has, of what `may` be used, and sets the request limits.
pub(super) fn negotiate(kernel: &mut KernelConfig, may: InitFlags) -> Negotiation {
    let (granted, mut degraded) = choose(kernel.capabilities() & may);
    if let Err(missing) = kernel.add_capabilities(granted) {
        degraded.push(format!("the kernel refused {missing:?}"));
    }
    for refused in [
        kernel.set_max_write(MAX_REQUEST).err().map(|nearest| format!("max_write {nearest} instead of {MAX_REQUEST}")),
        kernel.set_max_background(MAX_BACKGROUND).err().map(|nearest| format!("max_background {nearest}")),
        kernel.set_congestion_threshold(CONGESTION).err().map(|nearest| format!("congestion_threshold {nearest}")),
    ] {
        degraded.extend(refused);
    }
    let version = kernel.kernel_abi();
    Negotiation { granted, protocol: format!("{}.{}", version.0, version.1), degraded }
}

/// Of what is wanted, what a kernel with these capabilities can do, and what the rest costs.
fn choose(kernel: InitFlags) -> (InitFlags, Vec<String>) {
    let mut granted = InitFlags::empty();
    let mut degraded = Vec::new();
    if kernel.contains(WRITEBACK) {
        granted |= WRITEBACK;
    } else {
        degraded.push(
            "the kernel lacks HANDLE_KILLPRIV_V2 (Linux 5.11): writes are not cached, small ones are slow".to_owned(),
        );
    }
    for (flag, cost) in ALONE {
        if kernel.contains(flag) {
            granted |= flag;
        } else {
            degraded.push(format!("the kernel lacks {flag:?}: {cost}"));
        }
    }
    (granted, degraded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_with_everything_degrades_nothing() {
        let (granted, degraded) = choose(InitFlags::all());
        assert_eq!(degraded, Vec::<String>::new());
        assert!(granted.contains(WRITEBACK));
        assert!(!granted.intersects(InitFlags::FUSE_ATOMIC_O_TRUNC | InitFlags::FUSE_SETXATTR_EXT));
        assert!(!granted.contains(InitFlags::FUSE_ASYNC_DIO));
        assert!(!granted.intersects(InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS));
        assert!(!granted.intersects(InitFlags::FUSE_ALLOW_IDMAP | InitFlags::FUSE_HANDLE_KILLPRIV));
    }

    #[test]
    fn without_killpriv_there_is_no_writeback_cache() {
        let (granted, degraded) = choose(InitFlags::all() - InitFlags::FUSE_HANDLE_KILLPRIV_V2);
        assert!(!granted.intersects(WRITEBACK));
        assert_eq!(degraded.len(), 1);
        assert!(degraded[0].contains("HANDLE_KILLPRIV_V2"), "{degraded:?}");
    }

    #[test]
    fn each_missing_capability_is_named_once_and_takes_no_other_with_it() {
        for (flag, _) in ALONE {
            let (granted, degraded) = choose(InitFlags::all() - flag);
            assert_eq!(granted, choose(InitFlags::all()).0 - flag);
            assert_eq!(degraded.len(), 1, "{degraded:?}");
        }
    }
}
