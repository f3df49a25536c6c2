//! Manifests that whoever may write to an output has put there: the check of results and the next publication read them,
//! and nothing outside of the output is touched, whatever they say.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use runseal::audit::Trail;
use runseal::backing::MemoryBacking;
use runseal::crypt::Keyring;
use runseal::fs::{Creator, Kind, ROOT, Scratch, ScratchOptions};
use runseal::preflight::{Request, check};
use runseal::spec::{EngineChoice, Location, MemoryLock, StagingRules};
use runseal::stage::{Demands, MANIFEST, Progress, Stager, verify_directory};
use runseal::store::Store;

/// What is beside the output, and must stay.
const BESIDE: [&str; 2] = ["beside", "nest/deep"];

static PLACE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    // In memory where there is such a place: every publication syncs.
    let memory = tempfile::tempdir_in("/dev/shm");
    let place = memory.or_else(|_| tempfile::tempdir()).expect("a directory");
    fs::create_dir(place.path().join("nest")).expect("made");
    for name in BESIDE {
        fs::write(place.path().join(name), name).expect("written");
    }
    place
});

static SCRATCH: LazyLock<(Arc<Scratch>, u64)> = LazyLock::new(|| {
    let keyring = Keyring::new(EngineChoice::Portable, MemoryLock::Try).expect("keys");
    let store = Store::new(Box::new(MemoryBacking::new(1)), keyring, 1 << 30);
    let scratch = Scratch::new(store, ScratchOptions { memory: 1 << 30, uid: 0, gid: 0, mode: 0o755 });
    let caller = Creator { uid: 0, gid: 0, umask: 0o022 };
    let results = scratch.mkdir(ROOT, b"output", 0o755, &caller).expect("a directory").ino;
    scratch.mknod(results, b"new", Kind::File, 0o644, 0, &caller).expect("a file");
    (Arc::new(scratch), results)
});

struct Silent;

impl Progress for Silent {
    fn start(&self, _what: &'static str, _files: u64, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn file_done(&self) {}
    fn tell(&self, _line: &str) {}
    fn finish(&self) {}
}

/// An output of before: two files, a link out of it and a directory.
fn earlier(output: &Path, manifest: &[u8]) {
    fs::create_dir_all(output.join("d")).expect("made");
    fs::write(output.join("a"), "a").expect("written");
    fs::write(output.join("d/b"), "b").expect("written");
    std::os::unix::fs::symlink("../nest", output.join("l")).expect("made");
    fs::write(output.join(MANIFEST), manifest).expect("written");
}

fuzz_target!(|manifest: &[u8]| {
    let output = PLACE.path().join("output");
    earlier(&output, manifest);
    let _ = verify_directory(&output, &Demands::default());

    let location = Location::Path(output.clone());
    let request = Request {
        run: &"fuzz".parse().expect("a name"),
        inputs: &[],
        output: Some(&location),
        uploads: &runseal::aws::UploadSettings { overwrite: true, ..Default::default() },
        rules: StagingRules::default(),
        on_behalf: None,
        run_key: None,
        explain: false,
        space: u64::MAX,
    };
    if let Ok(cleared) = check(&request, None) {
        let (scratch, results) = &*SCRATCH;
        let trail = Arc::new(Trail::off());
        let stager = Stager::new(cleared, scratch.clone(), "fuzz".parse().expect("a name"), Arc::new(Silent), trail);
        if stager.publish(*results, None).is_ok() {
            assert!(output.join("new").exists(), "what is published is there");
        }
        stager.give_up(None);
    }
    for name in BESIDE {
        assert_eq!(fs::read_to_string(PLACE.path().join(name)).expect("still there"), name);
    }
    fs::remove_dir_all(&output).expect("removed");
});
