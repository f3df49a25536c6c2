//! Staging: what goes in comes out equal, and what goes wrong loses nothing.

mod fetch;
mod publish;
mod round_trip;
mod support;
