//! Staging: what goes in comes out equal, and what goes wrong loses nothing.

mod bucket;
mod fetch;
mod gate;
mod inherited;
mod links;
mod objects;
mod older;
mod others;
mod publish;
mod round_trip;
mod support;
mod uploads;
