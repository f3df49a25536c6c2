//! A place with inputs, a scratch in memory and an output; trees as values.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use runseal::aws::{Cloud, UploadSettings};
use runseal::backing::{Fault, FaultyBacking, MemoryBacking};
use runseal::crypt::Keyring;
use runseal::fs::{Attr, Creator, Kind, ROOT, Scratch, ScratchOptions, WriteMode};
use runseal::preflight::{Cleared, Report, Request};
use runseal::spec::{EngineChoice, InputSpec, Location, MemoryLock, StagingRules};
use runseal::stage::{Progress, StageError, Stager, Totals, View};
use runseal::store::Store;
use runseal::sys::path::{self, FileKind};
use sha2::{Digest, Sha256};

use crate::bucket::Bucket;

pub const RUN: &str = "test-run";
pub const PARTIAL: &str = ".runseal-test-run.partial";
pub const MANIFEST: &str = "runseal-manifest.json";
/// Where a command sees the scratch of [`Place::run_publisher`].
pub const MOUNT: &str = "/run/scratch";
pub const CALLER: Creator = Creator { uid: 0, gid: 0, umask: 0 };

/// `in/` for inputs and `out/` for results below a temporary directory, and a scratch.
pub struct Place {
    pub dir: PathBuf,
    pub scratch: Arc<Scratch>,
    pub store: Arc<Store>,
    pub fault: Arc<Fault>,
}

/// Local inputs and output only.
pub fn check(inputs: &[InputSpec], output: Option<&Path>, overwrite: bool, space: u64) -> Result<Cleared, Report> {
    check_by(inputs, output, overwrite, StagingRules::default(), space)
}

/// The same by other rules.
pub fn check_by(
    inputs: &[InputSpec],
    output: Option<&Path>,
    overwrite: bool,
    rules: StagingRules,
    space: u64,
) -> Result<Cleared, Report> {
    let output = output.map(|path| Location::Path(path.to_owned()));
    check_with(None, inputs, output.as_ref(), overwrite, rules, space)
}

/// Inputs and output in `bucket` too.
pub fn check_in(
    bucket: &Arc<Bucket>,
    inputs: &[InputSpec],
    output: Option<&Location>,
    overwrite: bool,
) -> Result<Cleared, Report> {
    check_in_by(bucket, inputs, output, overwrite, StagingRules::default())
}

/// The same by other rules.
pub fn check_in_by(
    bucket: &Arc<Bucket>,
    inputs: &[InputSpec],
    output: Option<&Location>,
    overwrite: bool,
    rules: StagingRules,
) -> Result<Cleared, Report> {
    check_with(Some(&bucket.cloud()), inputs, output, overwrite, rules, u64::MAX)
}

fn check_with(
    cloud: Option<&Cloud>,
    inputs: &[InputSpec],
    output: Option<&Location>,
    overwrite: bool,
    rules: StagingRules,
    space: u64,
) -> Result<Cleared, Report> {
    let request = Request {
        run: &RUN.parse().unwrap(),
        inputs,
        output,
        uploads: &UploadSettings { overwrite, ..UploadSettings::default() },
        rules,
        on_behalf: None,
        run_key: None,
        explain: false,
        space,
    };
    runseal::preflight::check(&request, cloud)
}

impl Place {
    pub fn new() -> Self {
        Self::with_limit(1 << 30)
    }

    pub fn with_limit(limit: u64) -> Self {
        let dir = tempfile::tempdir().unwrap().keep();
        fs::create_dir(dir.join("in")).unwrap();
        let fault = Arc::new(Fault::default());
        let backing = FaultyBacking::new(MemoryBacking::new(2), Arc::clone(&fault));
        let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).unwrap();
        let store = Store::new(Box::new(backing), keyring, limit);
        let options = ScratchOptions { memory: 1 << 30, uid: 0, gid: 0, mode: 0o755 };
        let scratch = Arc::new(Scratch::new(Arc::clone(&store), options));
        Self { dir, scratch, store, fault }
    }

    pub fn input(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join("in").join(name)
    }

    pub fn output(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join("out").join(name)
    }

    /// Clears `in/` as the input `set`, and `out/` as the output.
    pub fn clear(&self, overwrite: bool) -> Cleared {
        self.check(&[InputSpec { source: self.dir.join("in").into(), target: "set".into() }], overwrite)
    }

    fn check(&self, inputs: &[InputSpec], overwrite: bool) -> Cleared {
        check(inputs, Some(&self.output("")), overwrite, u64::MAX).unwrap_or_else(|report| panic!("{report}"))
    }

    pub fn stager(&self, overwrite: bool, progress: &Arc<Hooks>) -> Stager {
        let progress: Arc<dyn Progress> = Arc::clone(progress) as _;
        Stager::new(self.clear(overwrite), Arc::clone(&self.scratch), RUN.parse().unwrap(), progress, Arc::default())
    }

    /// A stager without inputs, for what is in the scratch already.
    pub fn publisher(&self, overwrite: bool, progress: &Arc<Hooks>) -> Stager {
        let cleared = self.check(&[], overwrite);
        Stager::new(cleared, Arc::clone(&self.scratch), RUN.parse().unwrap(), Arc::clone(progress) as _, Arc::default())
    }

    /// A stager for [`Place::results`] below the directory `output` of the scratch, as a run has it, by these rules.
    pub fn run_publisher(&self, overwrite: bool, rules: StagingRules, progress: &Arc<Hooks>) -> Stager {
        let cleared = check_by(&[], Some(&self.output("")), overwrite, rules, u64::MAX);
        let cleared = cleared.unwrap_or_else(|report| panic!("{report}"));
        let progress = Arc::clone(progress) as _;
        let stager = Stager::new(cleared, Arc::clone(&self.scratch), RUN.parse().unwrap(), progress, Arc::default());
        stager.with_view(View { mountpoint: MOUNT.into(), aliases: vec![("/tmp".into(), "/run/scratch/tmp".into())] })
    }

    /// A symbolic link of the scratch.
    pub fn link(&self, path: &str, text: &str) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let made = self.scratch.symlink(self.find(parent), name.as_bytes(), text.as_bytes(), &CALLER).unwrap();
        self.scratch.forget(made.ino, 1);
    }

    pub fn fetch(&self) -> Result<Totals, StageError> {
        self.stager(false, &Hooks::none()).fetch(ROOT, None)
    }

    /// Fills the scratch: a path that ends with `/` is a directory.
    pub fn results(&self, results: &[(&str, &str)]) {
        for (path, contents) in results {
            let (parent, name) =
                path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path.trim_end_matches('/')));
            let parent = self.find(parent);
            let attr = match path.ends_with('/') {
                true => self.scratch.mkdir(parent, name.as_bytes(), 0o755, &CALLER).unwrap(),
                false => self.file(parent, name.as_bytes(), contents.as_bytes()),
            };
            self.scratch.forget(attr.ino, 1);
        }
    }

    /// A file of the scratch; the caller owns one reference.
    pub fn file(&self, parent: u64, name: &[u8], contents: &[u8]) -> Attr {
        let attr = self.scratch.mknod(parent, name, Kind::File, 0o644, 0, &CALLER).unwrap();
        self.scratch.write(attr.ino, 0, contents, WriteMode::default()).unwrap();
        attr
    }

    /// The inode of a path in the scratch.
    pub fn find(&self, path: impl AsRef<Path>) -> u64 {
        path.as_ref().iter().fold(ROOT, |parent, name| {
            let ino = self.scratch.lookup(parent, name.as_bytes()).unwrap().ino;
            self.scratch.forget(ino, 1);
            ino
        })
    }

    pub fn contents(&self, path: &str) -> Vec<u8> {
        let ino = self.find(path);
        let mut data = vec![0; self.scratch.getattr(ino).unwrap().size as usize];
        assert_eq!(self.scratch.read(ino, 0, &mut data).unwrap(), data.len());
        data
    }

    /// Names visible in the output.
    pub fn published(&self) -> Vec<String> {
        let names = path::list(&self.output("")).unwrap_or_default();
        names.into_iter().map(|name| name.into_string().unwrap()).collect()
    }

    pub fn manifest(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.output(MANIFEST)).unwrap()).unwrap()
    }

    /// Empties the scratch; every inode and sector must be free then, unless staging kept a reference.
    pub fn assert_nothing_is_held(&self) {
        let mut directories = vec![(ROOT, None)];
        let mut next = 0;
        while next < directories.len() {
            let (parent, _) = directories[next];
            let mut entries = Vec::new();
            let mut take = |entry: runseal::fs::DirEntry<'_>| {
                entries.push((entry.name.to_vec(), entry.kind, entry.ino));
                true
            };
            self.scratch.readdir(parent, 0, &mut take).unwrap();
            for (name, kind, ino) in entries.into_iter().filter(|(name, ..)| name != b"." && name != b"..") {
                match kind {
                    Kind::Directory => directories.push((ino, Some((parent, name)))),
                    _ => self.scratch.unlink(parent, &name).unwrap(),
                }
            }
            next += 1;
        }
        for (_, entry) in directories.into_iter().skip(1).rev() {
            let (parent, name) = entry.unwrap();
            self.scratch.rmdir(parent, &name).unwrap();
        }
        let statfs = self.scratch.statfs();
        assert_eq!(statfs.inodes - statfs.inodes_free, 1, "inodes are held");
        assert_eq!(self.store.usage().used, 0, "sectors are held");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whoever is not root cannot empty a directory without the right to write.
        let mut left = vec![self.dir.clone()];
        while let Some(directory) = left.pop() {
            path::set_mode(&directory, 0o700).unwrap();
            let children = path::list(&directory).unwrap().into_iter().map(|name| directory.join(name));
            left.extend(children.filter(|child| path::stat(child).unwrap().kind == FileKind::Directory));
        }
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

type Hook = Box<dyn FnMut() + Send>;

/// Counts, and runs a hook at chosen moments of staging.
#[derive(Default)]
pub struct Hooks {
    on_advance: Mutex<Option<Hook>>,
    on_finish: Mutex<Option<Hook>>,
    pub expected: AtomicU64,
    pub bytes: AtomicU64,
    pub files: AtomicU64,
    /// What was told.
    pub told: Mutex<Vec<String>>,
}

impl Hooks {
    pub fn none() -> Arc<Self> {
        Arc::default()
    }

    /// Runs `hook` once, when the first bytes are through.
    pub fn once_under_way(hook: impl FnOnce() + Send + 'static) -> Arc<Self> {
        let hooks = Self::default();
        let mut hook = Some(hook);
        *hooks.on_advance.lock() = Some(Box::new(move || {
            if let Some(hook) = hook.take() {
                hook()
            }
        }));
        Arc::new(hooks)
    }

    /// Runs `hook` once, when all is written and renaming is about to start.
    pub fn once_written(hook: impl FnOnce() + Send + 'static) -> Arc<Self> {
        let hooks = Self::default();
        let mut hook = Some(hook);
        *hooks.on_finish.lock() = Some(Box::new(move || {
            if let Some(hook) = hook.take() {
                hook()
            }
        }));
        Arc::new(hooks)
    }
}

impl Progress for Hooks {
    fn start(&self, _what: &'static str, _files: u64, bytes: u64) {
        self.expected.store(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(hook) = &mut *self.on_advance.lock() {
            hook();
        }
    }

    fn file_done(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    fn tell(&self, line: &str) {
        self.told.lock().push(line.to_owned());
    }

    fn finish(&self) {
        if let Some(hook) = &mut *self.on_finish.lock() {
            hook();
        }
    }
}

/// What a tree is: everything that staging keeps.
#[derive(Debug, PartialEq)]
pub struct Node {
    pub kind: FileKind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, u32),
    /// Contents of a file or target of a link.
    pub contents: Vec<u8>,
}

/// Every name at and below `root`.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Node> {
    let mut nodes = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(relative) = left.pop() {
        let place = if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(&relative) };
        let stat = path::stat(&place).unwrap();
        let contents = match stat.kind {
            FileKind::File => {
                let mut data = Vec::new();
                std::io::Read::read_to_end(&mut path::open(&place).unwrap(), &mut data).unwrap();
                data
            }
            FileKind::Symlink => path::read_symlink(&place).unwrap().into_vec(),
            _ => Vec::new(),
        };
        if stat.kind == FileKind::Directory {
            left.extend(path::list(&place).unwrap().into_iter().map(|name: OsString| relative.join(name)));
        }
        let node = Node { kind: stat.kind, mode: stat.mode, owner: (stat.uid, stat.gid), mtime: stat.mtime, contents };
        nodes.insert(relative, node);
    }
    nodes
}

/// The manifest must be complete and true, and the hidden directory gone.
pub fn assert_published(place: &Place) {
    let manifest = place.manifest();
    let mut files = tree(&place.output(""));
    files.retain(|path, node| node.kind == FileKind::File && path.as_os_str() != MANIFEST);
    let lines = manifest["files"].as_array().unwrap();
    assert_eq!(lines.len() as u64, manifest["totals"]["files"].as_u64().unwrap());
    for line in lines {
        let path = match line["path_bytes"].as_str() {
            Some(digits) => from_base16(digits),
            None => line["path"].as_str().unwrap().as_bytes().to_vec(),
        };
        let node = files.remove(Path::new(&OsString::from_vec(path))).unwrap_or_else(|| panic!("{line}"));
        let sum: String = Sha256::digest(&node.contents).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(line["sha256"], *sum, "{line}");
        assert_eq!((&line["size"], &line["mode"]), (&node.contents.len().into(), &format!("{:04o}", node.mode).into()));
    }
    assert!(!place.output(PARTIAL).exists());
}

fn from_base16(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// Bytes without a pattern that a mixed-up part could repeat.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(len);
    data
}

/// A tmpfs over a directory, gone at the end of the test.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, said aloud, where mounting is not allowed.
    pub fn over(path: &Path, options: &str) -> Option<Self> {
        use nix::mount::{MsFlags, mount};
        fs::create_dir_all(path).unwrap();
        match mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options)) {
            Ok(()) => Some(Self(path.to_owned())),
            Err(e) => {
                eprintln!("SKIP: cannot mount a tmpfs: {e}");
                None
            }
        }
    }

    pub fn remount(&self, options: &str) {
        use nix::mount::{MsFlags, mount};
        mount(Some("tmpfs"), &self.0, Some("tmpfs"), MsFlags::MS_REMOUNT, Some(options)).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        nix::mount::umount(&self.0).unwrap();
    }
}
