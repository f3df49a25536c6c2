//! Requests as clients of a run's control socket write them: refused without being quoted, or said again in the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use runseal::family::control::wire::{REQUEST_MAX, Request};

fuzz_target!(|line: &[u8]| {
    let Ok(request) = Request::from_line(line) else { return };
    let Ok(said) = request.to_line() else { return };
    assert!(said.len() <= REQUEST_MAX && said.ends_with(b"\n"));
    let text = said.strip_suffix(b"\n").expect("just seen");
    assert!(!text.contains(&b'\n'), "one request is one line");
    let again = Request::from_line(text).expect("what was said is understood").to_line().expect("as long as before");
    assert!(again[..] == said[..], "a request means one thing");
});
