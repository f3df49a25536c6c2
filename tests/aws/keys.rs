//! Keys that KMS has a share in: neither the share nor what is made of it is to be found.

use std::fs;

use aws_smithy_types::base64;
use hkdf::Hkdf;
use sha2::Sha512;

use crate::aws_double::INPUT_KEY;
use crate::fixture::Site;
use crate::program::{Live, require_host, wait_until};
use crate::tap::{Secrets, Tap};

// promise: T-05, T-13, T-32
#[test]
fn neither_the_data_key_nor_the_run_key_made_of_it_is_anywhere() {
    require_host!();
    let Some(tap) = Tap::new() else { return println!("SKIP: {}: no C compiler", module_path!()) };
    let site = Site::holding([]);
    let mut launcher = site.runseal();
    tap.wire(&mut launcher);
    launcher.env("RUNSEAL_LOG", "trace").env("GO", site.path("go"));
    let flags = ["--run-key-kms", INPUT_KEY, "--report", "report.json", "--audit", "audit.jsonl"];
    let script = "for file in one two; do head -c 50000 /dev/zero >$file; sync $file; done; rm one
        ready; while [ ! -e \"$GO\" ]; do sleep 0.05; done";
    let live = Live::start_with(launcher, site.dir.path(), &flags, script);
    let (supervisor, sealed) = (live.supervisor(), live.sealed());

    let [data_key] = &site.double.data_keys()[..] else { panic!("one data key is drawn") };
    let [salt] = &tap.draws(64)[..] else { panic!("one salt is drawn") };
    let [.., deleted, kept] = &tap.draws(32)[..] else { panic!("files have slots") };
    let (run_key, _) = Hkdf::<Sha512>::extract(Some(salt), data_key);
    let mut never = Secrets::default();
    never.add("data key", data_key);
    never.add("salt", salt);
    never.add("run key", &run_key);
    never.add_file("the deleted file", &run_key, deleted);
    let mut all = Secrets::default();
    all.add("data key in base 64", base64::encode(data_key).as_bytes());
    all.add("data key", data_key);
    all.add("salt", salt);
    all.add("run key", &run_key);
    [deleted, kept].iter().for_each(|slot| all.add_file("a file", &run_key, slot));
    // Control: what the test has computed is what the run uses.
    let mut live_file = Secrets::default();
    live_file.add_file("the file that is left", &run_key, kept);
    assert!(live_file.found_in_memory(sealed, false).iter().any(|name| name.starts_with("content key")));

    let nowhere = [""; 0];
    wait_until("no key of a deleted file is left", || never.found_in_memory(sealed, false) == nowhere);
    let shared = all.found_in_memory(sealed, false).into_iter().filter(|name| !name.starts_with("content key"));
    assert_eq!(shared.collect::<Vec<_>>(), nowhere, "in the memory of the process with the key");
    assert_eq!(all.found_in_memory(supervisor, true), nowhere, "in the memory of the supervisor");
    assert_eq!(all.found_below(&crate::program::state_dir(&live.id)), nowhere, "in the state");
    fs::write(site.path("go"), "").expect("written");
    wait_until("the run is over", || tap.has_ended());
    assert_eq!(all.found_in_memory(sealed, true), nowhere, "in memory after the wipe");
    tap.release();
    let said = live.end().expect(0, &[]);
    for text in [said.err.as_bytes(), said.out.as_bytes()] {
        assert_eq!(all.found_in(text), nowhere, "in what was said");
    }
    for file in ["report.json", "audit.jsonl"] {
        assert_eq!(all.found_below(&site.path(file)), nowhere, "in {file}");
    }
}
