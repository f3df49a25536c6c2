//! The threads that serve a mount: how many, and what a panic of one does.

use std::panic;
use std::process;
use std::sync::Once;
use std::thread;

use parking_lot::Mutex;

use crate::sys::memory;
use crate::sys::mount as sys;

/// fuser names its workers `fuser-0`, `fuser-1`, ...
const WORKER_PREFIX: &str = "fuser-";

pub(super) fn worker_count(wanted: usize) -> usize {
    match wanted {
        0 => thread::available_parallelism().map_or(4, |processors| processors.get().clamp(4, 8)),
        threads => threads,
    }
}

/// Minor device numbers of the mounts this process serves, for the panic hook, which is the process's as well. No worker
/// takes this lock but the one that panics.
pub(super) static SERVED: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// A panic would end one worker silently: its caller would hang for ever, and later requests with it. So a panic of a
/// worker, in a handler or in fuser, wipes the keys and ends the process; then the kernel fails every request. The connections
/// go before it does: a
/// thread of this process that is inside one of its own mounts could not end before they do.
pub(super) fn abort_on_worker_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            previous(info);
            if thread::current().name().is_some_and(|name| name.starts_with(WORKER_PREFIX)) {
                // Nobody will drop what holds the keys.
                memory::wipe_all();
                for minor in SERVED.lock().iter() {
                    // Without fusectl, the end of the process closes them.
                    let _ = sys::abort_fuse_connection(*minor);
                }
                process::abort();
            }
        }));
    });
}
