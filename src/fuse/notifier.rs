//! Tells the kernel what it must forget, from a thread of its own.
//!
//! A notification about a range of a file waits for pages that are on their way here. A worker that sent one could wait
//! for itself, so workers only put such notices into a queue. Attributes wait for nothing.

use std::ops::Range;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::{fmt, io};

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

/// Something to be told.
pub(super) enum Notice {
    /// The attributes of an inode are to be asked for again.
    Attributes(u64),
    /// A range of bytes of a file is to be read again; what is dirty in it is written first.
    Range(u64, Range<u64>),
    /// Anything that may wait for the kernel.
    Task(Box<dyn FnOnce(&Notifier) + Send>),
}

/// Where notices go. Those that come before [`Notices::start`] or after the end of the session are dropped, since then
/// the kernel holds nothing.
#[derive(Default)]
pub(super) struct Notices {
    channel: Mutex<Option<Channel>>,
}

#[derive(Clone)]
struct Channel {
    queue: Sender<Notice>,
    /// For what waits for nothing, and must not wait behind what does.
    notifier: Option<Notifier>,
}

impl Notices {
    /// Starts the thread.
    pub(super) fn start(&self, notifier: Notifier) -> io::Result<()> {
        let (queue, notices) = mpsc::channel();
        *self.channel.lock() = Some(Channel { queue, notifier: Some(notifier.clone()) });
        let work = move || notices.into_iter().for_each(|notice: Notice| tell(&notifier, notice));
        thread::Builder::new().name("fuse-notifier".to_owned()).spawn(work).map(drop)
    }

    /// Attributes are told at once, everything else in its turn.
    pub(super) fn send(&self, notice: Notice) {
        let Some(Channel { queue, notifier }) = self.channel.lock().clone() else { return };
        match (&notice, notifier) {
            (Notice::Attributes(_), Some(notifier)) => tell(&notifier, notice),
            // The thread ends after its queue.
            _ => _ = queue.send(notice),
        }
    }

    /// Does something that may take long beside the queue.
    pub(super) fn beside(&self, task: impl FnOnce(&Notifier) + Send + 'static) {
        let Some(Channel { queue, notifier }) = self.channel.lock().clone() else { return };
        let Some(notifier) = notifier else { return drop(queue.send(Notice::Task(Box::new(task)))) };
        let work = move || task(&notifier);
        if let Err(error) = thread::Builder::new().name("fuse-notices".to_owned()).spawn(work) {
            tracing::warn!(%error, "the kernel was not told in time");
        }
    }

    /// Ends the thread once it has told what is in the queue: its descriptor would keep the connection alive.
    pub(super) fn end(&self) {
        *self.channel.lock() = None;
    }
}

fn tell(notifier: &Notifier, notice: Notice) {
    if let Err(error) = pass_on(notifier, notice) {
        // The session is ending.
        tracing::debug!(%error, "the kernel took no notice");
    }
}

/// Tells a notice at once; what is about a range, not from a worker.
pub(super) fn pass_on(notifier: &Notifier, notice: Notice) -> io::Result<()> {
    /// Behind the attributes, no range.
    const ATTRIBUTES_ONLY: i64 = -1;
    match notice {
        Notice::Attributes(ino) => notifier.inval_inode(INodeNo(ino), ATTRIBUTES_ONLY, 0),
        Notice::Range(ino, range) => {
            let (start, end) = (range.start.min(i64::MAX as u64), range.end.min(i64::MAX as u64));
            // A length of 0 means: to the end.
            let length = if end == i64::MAX as u64 { 0 } else { end.saturating_sub(start) };
            notifier.inval_inode(INodeNo(ino), start as i64, length as i64)
        }
        Notice::Task(task) => {
            task(notifier);
            Ok(())
        }
    }
}

impl fmt::Debug for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attributes(ino) => write!(f, "Attributes({ino})"),
            Self::Range(ino, range) => write!(f, "Range({ino}, {range:?})"),
            Self::Task(_) => f.write_str("Task"),
        }
    }
}

#[cfg(test)]
impl Notices {
    /// The other end of the queue, without a thread and a kernel.
    pub(super) fn watched() -> (Self, mpsc::Receiver<Notice>) {
        let (queue, notices) = mpsc::channel();
        (Self { channel: Mutex::new(Some(Channel { queue, notifier: None })) }, notices)
    }
}
