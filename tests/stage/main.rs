//! Staging: what goes in comes out equal, and what goes wrong loses nothing.

mod bucket;
mod fetch;
mod objects;
mod publish;
mod round_trip;
mod support;
mod uploads;
