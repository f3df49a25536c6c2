//! Where the orders of a sealed process come in, and its events go out.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};

use crate::family::{Event, Journal, Phase, Reply, Request, SignalMessage, Voice};
use crate::sys::process::Inherited;

/// Something the sealed process is told to do.
pub enum Order {
    /// A signal came to the supervisor.
    Signal {
        /// Which.
        signal: Signal,
        /// Whether the terminal sent it, to the command as well.
        from_terminal: bool,
    },
    /// A client of the control socket asks for something; it waits for the reply.
    Request(Request, oneshot::Sender<Reply>),
    /// The session of the mount is over.
    MountEnded,
    /// The supervisor is gone.
    Orphaned,
}

/// Where orders come in and events go out.
pub struct Desk {
    /// Orders, in the order they came.
    pub orders: mpsc::UnboundedReceiver<Order>,
    /// Where more orders may come from.
    pub sender: mpsc::UnboundedSender<Order>,
    /// Takes events.
    pub journal: Arc<Journal>,
    /// What the user started runseal with.
    pub inherited: Inherited,
    /// How much to say.
    pub voice: Voice,
    /// Who has ended the run, and wants to hear when it is done.
    pub farewell: Farewell,
}

/// The end of a run as somebody has ordered it.
#[derive(Default)]
pub struct Farewell {
    /// Whether results that are in the output already are to be removed.
    pub remove_published: bool,
    waiting: Option<oneshot::Sender<Reply>>,
}

impl Farewell {
    /// Takes the order; it is answered later.
    pub fn order(&mut self, remove_published: bool, client: oneshot::Sender<Reply>) {
        *self = Self { remove_published, waiting: Some(client) };
    }

    /// Answers, if somebody waits and has not been answered.
    pub fn answer(&mut self, text: impl Into<String>) {
        if let Some(client) = self.waiting.take() {
            let _ = client.send(Reply::done(text));
        }
    }
}

impl Desk {
    /// A new phase begins.
    pub fn phase(&self, phase: Phase) {
        self.journal.record(Event::Phase { phase });
    }

    /// The next order.
    pub async fn next(&mut self) -> Order {
        self.orders.recv().await.unwrap_or(Order::Orphaned)
    }
}

/// Whether people mean the end by it.
pub fn asks_to_end(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGTERM)
}

/// A thread that turns what the supervisor sends into orders, and its silence into the last one.
pub fn read_link(link: UnixStream, orders: mpsc::UnboundedSender<Order>) {
    std::thread::spawn(move || {
        for line in BufReader::new(link).lines().map_while(Result::ok) {
            if let Ok(SignalMessage { signal, from_terminal }) = serde_json::from_str(&line)
                && let Ok(signal) = Signal::try_from(signal)
            {
                let _ = orders.send(Order::Signal { signal, from_terminal });
            }
        }
        let _ = orders.send(Order::Orphaned);
    });
}
