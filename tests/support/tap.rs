//! Key material as the kernel gave it to a run, and the search for it in memory and files.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use hkdf::Hkdf;
use sha2::Sha512;
use tempfile::TempDir;

const SOURCE: &str = include_str!("tap.c");
/// Starts the `info` of HKDF-Expand, as docs/design.md tells.
const LABEL: &[u8] = b"runseal content key v1 ";
/// Length of the pieces of secrets that are looked for: what a register of the processor holds.
const PIECE: usize = 16;

/// A library to be preloaded into a run, and what it notes.
pub struct Tap {
    folder: TempDir,
}

impl Tap {
    /// Compiles the library; `None` without a C compiler.
    pub fn new() -> Option<Self> {
        let folder = tempfile::tempdir().expect("tempdir");
        let library = folder.path().join("tap.so");
        let mut compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-x", "c", "-o"])
            .arg(&library)
            .arg("-")
            .stdin(Stdio::piped())
            .spawn()
            .ok()?;
        compiler.stdin.take().expect("piped").write_all(SOURCE.as_bytes()).expect("the compiler reads");
        assert!(compiler.wait().expect("wait").success(), "tap.c compiles");
        fs::write(folder.path().join("hold"), "").expect("written");
        Some(Self { folder })
    }

    /// Has `command` load the library.
    pub fn wire(&self, command: &mut Command) {
        command.env("LD_PRELOAD", self.folder.path().join("tap.so")).env("RUNSEAL_TAP", self.folder.path());
    }

    /// Random bytes of this length that the process with the key has drawn, in order.
    pub fn draws(&self, length: usize) -> Vec<Vec<u8>> {
        let noted = fs::read(self.folder.path().join("draws.1")).expect("the run has drawn something");
        let (mut rest, mut draws) = (&noted[..], Vec::new());
        while let Some((count, tail)) = rest.split_first_chunk() {
            let (draw, tail) = tail.split_at(u32::from_ne_bytes(*count) as usize);
            draws.push(draw.to_vec());
            rest = tail;
        }
        draws.retain(|draw| draw.len() == length);
        draws
    }

    /// Whether the process with the key has done all it does, and waits.
    pub fn has_ended(&self) -> bool {
        self.folder.path().join("ended").exists()
    }

    /// Lets it go.
    pub fn release(&self) {
        fs::remove_file(self.folder.path().join("hold")).expect("removed");
    }
}

/// Secrets to look for, by name.
#[derive(Default)]
pub struct Secrets {
    pieces: HashMap<[u8; PIECE], String>,
}

impl Secrets {
    /// Adds a secret.
    pub fn add(&mut self, name: &str, secret: &[u8]) {
        for (at, piece) in secret.chunks_exact(PIECE).enumerate() {
            let name = format!("{name}, bytes {} to {}", at * PIECE, (at + 1) * PIECE - 1);
            self.pieces.insert(piece.try_into().expect("pieces"), name);
        }
    }

    /// Adds the slot of a file and the content key made from it: both XTS keys, with which key schedules begin.
    pub fn add_file(&mut self, name: &str, run_key: &[u8], slot: &[u8]) {
        let mut key = [0; 64];
        let expand = Hkdf::<Sha512>::from_prk(run_key).expect("64 bytes");
        expand.expand_multi_info(&[LABEL, slot], &mut key).expect("64 bytes are one output");
        self.add(&format!("slot of {name}"), slot);
        self.add(&format!("content key of {name}"), &key);
    }

    /// Those that stand in `bytes`.
    pub fn found_in(&self, bytes: &[u8]) -> Vec<&str> {
        let mut begins = vec![false; 1 << 16];
        for piece in self.pieces.keys() {
            begins[usize::from(piece[0]) << 8 | usize::from(piece[1])] = true;
        }
        let mut found = Vec::new();
        let zeros = [0; 4096];
        for start in (0..bytes.len()).step_by(zeros.len()) {
            let page = &bytes[start..bytes.len().min(start + zeros.len() + PIECE - 1)];
            if page.len() >= zeros.len() && page[..zeros.len()] == zeros {
                continue;
            }
            for (at, pair) in page.windows(2).enumerate() {
                if begins[usize::from(pair[0]) << 8 | usize::from(pair[1])]
                    && let Some(name) = page[at..].first_chunk().and_then(|piece| self.pieces.get(piece))
                {
                    found.push(&**name);
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Those that stand in the memory of a process that others can read; with `key_pages` also in memory that is left
    /// out of dumps and children, where that can be read.
    pub fn found_in_memory(&self, process: i32, key_pages: bool) -> Vec<&str> {
        let memory = File::open(format!("/proc/{process}/mem")).expect("root may read it");
        let maps = fs::read_to_string(format!("/proc/{process}/smaps")).expect("it lives");
        let (mut found, mut seen, mut range) = (Vec::new(), 0, None);
        for line in maps.lines() {
            let mut fields = line.split(' ');
            let bounds = fields.next().and_then(|range| range.split_once('-'));
            let bound = |text: &str| u64::from_str_radix(text, 16).ok();
            if let Some((start, end)) = bounds.and_then(|(start, end)| bound(start).zip(bound(end))) {
                range = fields.next().is_some_and(|rights| rights.starts_with('r')).then_some((start, end));
            } else if let (Some((start, end)), Some(flags)) = (range, line.strip_prefix("VmFlags:")) {
                let of_keys = flags.contains(" dc") && flags.contains(" dd");
                if key_pages || !of_keys {
                    let content = read(&memory, start, end);
                    seen += content.len();
                    found.extend(self.found_in(&content));
                }
            }
        }
        assert!(seen > 1 << 20, "nothing could be read of {process}");
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Those that stand in files below `folder`, or in the file of that name.
    pub fn found_below(&self, folder: &Path) -> Vec<&str> {
        if folder.is_dir() {
            let entries = fs::read_dir(folder).expect("listed");
            entries.flat_map(|entry| self.found_below(&entry.expect("entry").path())).collect()
        } else if folder.is_file() {
            self.found_in(&fs::read(folder).expect("read"))
        } else {
            // A socket, say; but a path that is not there would make the search blind.
            assert!(folder.exists(), "{} is not there", folder.display());
            Vec::new()
        }
    }
}

/// What can be read: memory of devices and secret memory cannot.
fn read(memory: &File, start: u64, end: u64) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(end - start).expect("fits")];
    for (at, piece) in content.chunks_mut(1 << 20).enumerate() {
        let place = start + ((at as u64) << 20);
        if memory.read_exact_at(piece, place).is_err() {
            for (at, page) in piece.chunks_mut(4096).enumerate() {
                let _ = memory.read_exact_at(page, place + at as u64 * 4096);
            }
        }
    }
    content
}

/// The instrument itself: finds what is there at any place, and nothing else.
#[test]
fn the_search_is_not_blind() {
    let secret: Vec<u8> = (1..=32).collect();
    let mut secrets = Secrets::default();
    secrets.add("secret", &secret);
    let mut memory = vec![0; 20_000];
    assert_eq!(secrets.found_in(&memory), [""; 0]);
    for place in [0, 1, 4090, 4096, 8187, memory.len() - 32] {
        memory[place..place + 32].copy_from_slice(&secret);
        assert_eq!(secrets.found_in(&memory).len(), 2, "at {place}");
        memory[place..place + 32].fill(0);
    }
    let own = i32::try_from(std::process::id()).expect("fits");
    let kept = std::hint::black_box(secret);
    assert!(!secrets.found_in_memory(own, false).is_empty());
    drop(kept);
}
