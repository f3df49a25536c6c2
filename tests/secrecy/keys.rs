//! Keys, not what they hide: the random bytes that the kernel gave a run are nowhere to be found.

use std::fs;
use std::process::Command;

use crate::disk::Disk;
use crate::family::{Family, children, code};
use crate::tap::{Secrets, Tap};
use crate::{require_host, wait_until};

// promise: T-05, T-06, T-13
#[test]
fn key_material_is_in_no_file_and_after_the_wipe_nowhere() {
    require_host!();
    if !cfg!(feature = "aws-lc") {
        // `aes` keeps copies of expanded keys on the stack while it works: see "Not promised" in the threat model.
        return;
    }
    let Some(tap) = Tap::new() else { return crate::skip("no C compiler") };
    let disk = Disk::new();
    let report = disk.outside().join("report.json");
    let mut launcher = Command::new(env!("CARGO_BIN_EXE_runseal"));
    tap.wire(&mut launcher);
    launcher.env("RUNSEAL_LOG", "trace");
    let arguments = ["--backing", disk.mount.to_str().unwrap(), "--report", report.to_str().unwrap()];
    let script = "for file in one two three kept; do head -c 50000 /dev/zero >$file; sync $file; done
        rm one two three; wait_at_gate";
    let family = Family::start_as(launcher, disk.outside(), &arguments, script);
    let (supervisor, sealed, state) = (family.supervisor(), family.sealed, family.state());

    let [run_key] = &tap.draws(64)[..] else { panic!("one run key is drawn") };
    let slots = tap.draws(32);
    let (kept, deleted) = slots.split_last().expect("files have slots");
    assert_eq!(deleted.len(), 3, "a slot for each file");
    let mut never = Secrets::default();
    never.add("run key", run_key);
    deleted.iter().for_each(|slot| never.add_file("a deleted file", run_key, slot));
    let mut all = Secrets::default();
    all.add("run key", run_key);
    slots.iter().for_each(|slot| all.add_file("a file", run_key, slot));
    let mut live = Secrets::default();
    live.add_file("the file that is left", run_key, kept);

    let nowhere = [""; 0];
    // The kernel forgets deleted files in its own time.
    wait_until("no key of a deleted file is left", || never.found_in_memory(sealed, false) == nowhere);
    // Control: the expanded key of a file in use is there.
    assert!(live.found_in_memory(sealed, false).iter().any(|name| name.starts_with("content key")));
    for process in [vec![supervisor], children(sealed)].concat() {
        assert_eq!(all.found_in_memory(process, true), nowhere, "in the memory of {process}");
    }
    for process in [supervisor, sealed] {
        for file in ["environ", "cmdline"] {
            let told = fs::read(format!("/proc/{process}/{file}")).expect("readable");
            assert_eq!(all.found_in(&told), nowhere, "in {file}");
        }
    }
    assert_eq!(all.found_below(&state), nowhere, "in the state");
    assert_eq!(disk.search_for(&all), nowhere, "on the disk during the run");

    family.open_gate();
    wait_until("the run is over", || tap.has_ended());
    assert_eq!(all.found_in_memory(sealed, true), nowhere, "in memory after the wipe");
    tap.release();
    let outcome = family.outcome();
    assert_eq!(code(&outcome), 0, "{}", String::from_utf8_lossy(&outcome.stderr));
    assert_eq!(all.found_in(&outcome.stderr), nowhere, "in the log");
    assert_eq!(all.found_below(&report), nowhere, "in the report");
    assert_eq!(disk.search_for(&all), nowhere, "on the disk after the run");
}
