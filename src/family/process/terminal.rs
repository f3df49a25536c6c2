//! The terminal comes back to the run when an interactive command has ended.

use std::fs::File;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg};
use nix::unistd::{getpgrp, tcgetpgrp, tcsetpgrp};

/// The controlling terminal, if this run had its foreground at the start.
pub struct Terminal {
    tty: Option<File>,
}

impl Terminal {
    /// Remembers whether this process group is in the foreground.
    pub fn remember() -> Self {
        let tty = File::open("/dev/tty").ok();
        Self { tty: tty.filter(|tty| tcgetpgrp(tty) == Ok(getpgrp())) }
    }

    /// Takes the foreground back from a group that is gone: a shell in its own namespaces cannot return it, and without
    /// it `^C` would reach nobody. A live group, such as that of the user's shell after `bg`, keeps it.
    pub fn take_back(&self) {
        let Some(tty) = &self.tty else { return };
        if !tcgetpgrp(tty).is_ok_and(|group| killpg(group, None) == Err(Errno::ESRCH)) {
            return;
        }
        // From the background this raises SIGTTOU, unless blocked (tcsetpgrp(3)).
        if let Ok(mask) = SigSet::from(Signal::SIGTTOU).thread_swap_mask(SigmaskHow::SIG_BLOCK) {
            let _ = tcsetpgrp(tty, getpgrp());
            let _ = mask.thread_set_mask();
        }
    }
}
