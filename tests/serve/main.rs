//! `runseal serve`, through its sockets.

mod api;
mod node;
