//! The node daemon: one family of processes per run, over HTTP on a Unix socket.
