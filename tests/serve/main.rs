//! `runseal serve`, through its sockets.

mod api;
mod docker;
mod misuse;
mod node;
mod restart;
mod scale;
mod settings;
mod volumes;
