//! Words of the command line and of requests: what is taken can be shown, and read again as the same.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use runseal::spec::{InputSpec, Isolate, KmsKey, Location, OnHold, Region, RoleArn, RunId, S3Uri, SavePattern};
use runseal::units::ByteSize;

/// Reads `text`; what it shows as must read as the same.
fn again<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let shown = value.to_string();
        assert!(shown.parse::<T>().is_ok_and(|back| back == value), "{text:?} shows as {shown:?}");
    }
}

fuzz_target!(|text: &str| {
    again::<S3Uri>(text);
    again::<RunId>(text);
    again::<KmsKey>(text);
    for exists in [false, true] {
        let _ = InputSpec::parse(text.as_ref(), |_| exists);
        let _ = Location::parse_output(text.as_ref(), |_| exists);
    }
    let _ = text.parse::<Region>();
    let _ = text.parse::<RoleArn>();
    let _ = text.parse::<Isolate>();
    let _ = text.parse::<OnHold>();
    let _ = text.parse::<SavePattern>();
    let _ = text.parse::<ByteSize>();
});
