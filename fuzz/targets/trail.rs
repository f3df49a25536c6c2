//! Audit trails that somebody tampered with: the verifier ends with a verdict, and only a chain is called one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use runseal::audit::{TrailDemands, verify};

fuzz_target!(|trail: &[u8]| {
    let verdict = verify(trail, &TrailDemands::default()).expect("memory can be read");
    if let Ok(summary) = verdict {
        let lines = trail.iter().filter(|&&byte| byte == b'\n').count() as u64;
        assert_eq!(summary.head.sequence + summary.torn, lines, "every line is an event, or marked as torn");
    }
});
