//! A mount as a service: what the manager that started it is told, and the proof of health its watchdog gets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::statvfs::statvfs;

use crate::family::{Event, FamilyError, Phase, error::system};
use crate::sys::notify::{Manager, Notifier};
use crate::sys::path::shown;

/// A mount in the foreground, seen by a service manager, if there is one.
pub struct Service {
    notifier: Arc<Notifier>,
    mountpoint: PathBuf,
}

impl Service {
    /// Takes what the environment says of a manager; call it before the first thread and the first child.
    pub fn take(mountpoint: &Path) -> Result<Self, FamilyError> {
        let manager = Manager::take().map_err(system("reading NOTIFY_SOCKET"))?;
        Ok(Self { notifier: Arc::new(manager.notifier), mountpoint: mountpoint.to_owned() })
    }

    /// Tells the manager what concerns it.
    pub fn on_event(&self, event: &Event) {
        match event {
            Event::Phase { phase: Phase::Serving } => {
                self.notifier.ready(&format!("serving {}", shown(&self.mountpoint)));
                self.feed_watchdog();
            }
            Event::Phase { phase: Phase::End } => self.notifier.stopping(),
            _ => {}
        }
    }

    /// From a thread of its own: a serving process that hangs never answers, and then the manager acts. statfs(2) is
    /// never answered from a cache.
    fn feed_watchdog(&self) {
        let Some(period) = self.notifier.watchdog_period() else { return };
        let (notifier, mountpoint) = (self.notifier.clone(), self.mountpoint.clone());
        std::thread::spawn(move || {
            loop {
                if statvfs(&mountpoint).is_ok() {
                    notifier.watchdog();
                }
                std::thread::sleep(period);
            }
        });
    }
}
