//! Walks every input, gives each name its place, and opens every file for reading.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::unistd::{Whence, lseek};

use super::links::{self, Landing, Spot};
use crate::preflight::report::{Code, Finding};
use crate::preflight::tree::{NameConflict, Origin, Tree, valid_target};
use crate::spec::{InputSpec, Location};
use crate::sys::beneath::Linkless;
use crate::sys::path::{self, FileKind, Stat, shown};
use crate::units::SECTOR_U64;

/// Opening is waiting, on network file systems above all: more threads than processors pay off.
const THREADS: usize = 16;
/// Below this many jobs for each thread, starting it costs more than it gains.
const JOBS_PER_THREAD: usize = 32;

/// A finding and the input it is about, by position on the command line.
pub(in crate::preflight) type Tagged = (u32, Finding);

/// Walks all inputs and puts what is there into one tree; with `dereference`, what links out of an input lead to too.
pub(in crate::preflight) fn survey(inputs: &[InputSpec], dereference: bool) -> (Tree, Vec<Tagged>) {
    let walked = in_parallel(inputs.len(), |i| Walk::of(&inputs[i], dereference));
    let mut tree = Tree::new(walked.iter().map(|walk| walk.source.clone()).collect());
    let mut findings = Vec::new();
    for (input, walk) in (0..).zip(walked) {
        place(&mut tree, input, &inputs[input as usize], &walk.found, &mut findings);
        findings.extend(walk.findings.into_iter().map(|finding| (input, finding)));
    }
    (tree, findings)
}

/// Opens every file of the tree; answers with the space all of them take in the scratch, in bytes.
pub(in crate::preflight) fn read(tree: &Tree, findings: &mut Vec<Tagged>) -> u64 {
    let mut input_of = Vec::with_capacity(tree.items.len());
    for item in &tree.items {
        input_of.push(match item.origin {
            Origin::Input(input, _) => input,
            Origin::Below(_) | Origin::Linked(..) => input_of[item.parent as usize],
            Origin::Object(object) => tree.objects[object as usize].input,
            Origin::Implied => 0,
        });
    }
    let answers = in_parallel(tree.items.len(), |i| match tree.items[i].seen() {
        Some(seen) if seen.kind == FileKind::File => try_file(&tree.source(i as u32), seen),
        _ => Ok(0),
    });
    let mut needed = 0;
    for (input, answer) in input_of.into_iter().zip(answers) {
        match answer {
            Ok(space) => needed += space,
            Err(finding) => findings.push((input, finding)),
        }
    }
    needed
}

/// What was found at and below one input, parents before children.
struct Walk {
    source: PathBuf,
    dereference: bool,
    found: Vec<InputEntry>,
    findings: Vec<Finding>,
}

struct InputEntry {
    /// Index into the same list; of the first, itself.
    parent: usize,
    name: OsString,
    seen: Stat,
    link: Link,
}

/// What is special about a name that is a symbolic link outside.
enum Link {
    /// Nothing, or it is none.
    Plain,
    /// Staged with this text.
    Text(OsString),
    /// Replaced by what is at this path.
    Behind(PathBuf),
}

impl Walk {
    fn of(input: &InputSpec, dereference: bool) -> Self {
        let Location::Path(given) = &input.source else {
            return Self { source: PathBuf::new(), dereference, found: Vec::new(), findings: Vec::new() };
        };
        let resolved = fs::canonicalize(given);
        let source = resolved.as_ref().unwrap_or(given).clone();
        let mut walk = Self { source, dereference, found: Vec::new(), findings: Vec::new() };
        if let Err(why) = valid_target(&input.target) {
            walk.findings.push(bad_target(given, input, why));
        }
        match resolved.and_then(|source| path::stat(&Linkless(&source))) {
            Ok(seen) => walk.note(0, OsString::new(), given, seen, Link::Plain),
            Err(e) => walk.findings.push(unreachable(given, &e)),
        }
        walk.descend();
        walk
    }

    fn descend(&mut self) {
        let mut next = 0;
        while next < self.found.len() {
            if self.found[next].seen.kind == FileKind::Directory {
                let directory = self.path(next);
                match path::list(&Linkless(&directory)) {
                    Ok(names) => self.enter(next, &directory, names),
                    Err(e) => self.findings.push(unreadable(&directory, "listed", &e)),
                }
            }
            next += 1;
        }
    }

    fn enter(&mut self, parent: usize, directory: &Path, names: Vec<OsString>) {
        for name in names {
            let child = directory.join(&name);
            match path::stat(&Linkless(&child)) {
                Ok(seen) if seen.kind == FileKind::Symlink => self.link(parent, name, &child, seen),
                Ok(seen) => self.note(parent, name, &child, seen, Link::Plain),
                Err(e) if e.kind() == io::ErrorKind::NotFound => self.findings.push(changing(&child)),
                Err(e) => {
                    // Without the right to search the directory every entry fails alike: say it once.
                    self.findings.push(unreadable(&child, "reached", &e));
                    return;
                }
            }
        }
    }

    fn note(&mut self, parent: usize, name: OsString, path: &Path, seen: Stat, link: Link) {
        match seen.kind {
            FileKind::Special(kind) => self.findings.push(special(path, kind)),
            _ => self.found.push(InputEntry { parent, name, seen, link }),
        }
    }

    /// A link that stays in the tree it is in is kept, one that leads out of it replaced or refused.
    fn link(&mut self, parent: usize, name: OsString, path: &Path, seen: Stat) {
        let landing =
            path::read_symlink(&Linkless(path)).and_then(|text| links::follow(path, &text, self.top(parent), spot));
        match landing {
            Ok(Landing::Within) => self.note(parent, name, path, seen, Link::Plain),
            Ok(Landing::Back(to)) => {
                let text = links::relative(path.parent().unwrap_or(path), &to);
                self.note(parent, name, path, seen, Link::Text(text));
            }
            Ok(Landing::Away(to, Spot::Directory | Spot::Other)) if self.dereference => {
                self.behind(parent, name, path, to);
            }
            Ok(Landing::Away(to, found)) => self.findings.push(astray(path, &to, found == Spot::Missing)),
            Ok(Landing::Endless) => self.findings.push(endless(path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.findings.push(changing(path)),
            Err(e) => self.findings.push(unreadable(path, "followed", &e)),
        }
    }

    fn behind(&mut self, parent: usize, name: OsString, path: &Path, to: PathBuf) {
        match path::stat(&Linkless(&to)) {
            Ok(seen) if self.is_above(parent, &seen) => self.findings.push(circle(path, &to)),
            Ok(seen) => self.note(parent, name, path, seen, Link::Behind(to)),
            Err(e) => self.findings.push(unreadable(&to, "reached", &e)),
        }
    }

    /// Whether one of the directories on the way down to `at`, itself included, is `seen`.
    fn is_above(&self, at: usize, seen: &Stat) -> bool {
        let same = |found: &InputEntry| (found.seen.dev, found.seen.ino) == (seen.dev, seen.ino);
        let up = std::iter::successors(Some(at), |&at| (at != 0).then(|| self.found[at].parent));
        seen.kind == FileKind::Directory && up.into_iter().any(|at| same(&self.found[at]))
    }

    /// Path of the tree that `at` is in: the input, or what a link led to.
    fn top(&self, mut at: usize) -> &Path {
        loop {
            match &self.found[at] {
                InputEntry { link: Link::Behind(path), .. } => return path,
                _ if at == 0 => return &self.source,
                found => at = found.parent,
            }
        }
    }

    fn path(&self, mut at: usize) -> PathBuf {
        let mut path = self.top(at).to_owned();
        let mut names = Vec::new();
        while at != 0 && !matches!(self.found[at].link, Link::Behind(_)) {
            names.push(&self.found[at].name);
            at = self.found[at].parent;
        }
        path.extend(names.into_iter().rev());
        path
    }
}

/// What is at a path of this machine.
fn spot(path: &Path) -> io::Result<Spot> {
    match path::stat(path) {
        Ok(Stat { kind: FileKind::Directory, .. }) => Ok(Spot::Directory),
        Ok(Stat { kind: FileKind::Symlink, .. }) => path::read_symlink(path).map(Spot::Link),
        Ok(_) => Ok(Spot::Other),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Spot::Missing),
        Err(e) => Err(e),
    }
}

/// Grafts what was found onto the tree. Below a name that is taken nothing more is said.
fn place(tree: &mut Tree, input: u32, spec: &InputSpec, found: &[InputEntry], findings: &mut Vec<Tagged>) {
    if valid_target(&spec.target).is_err() || found.is_empty() {
        return;
    }
    let mut placed: Vec<Option<u32>> = Vec::with_capacity(found.len());
    for InputEntry { parent, name, seen, link } in found {
        let result = match (placed.get(*parent), placed.is_empty()) {
            (_, true) => tree
                .imply(&spec.target)
                .and_then(|(parent, name)| tree.claim(parent, name, Origin::Input(input, *seen))),
            (Some(Some(parent)), _) => {
                let origin = origin(tree, *seen, link);
                tree.claim(*parent, name, origin)
            }
            _ => {
                placed.push(None);
                continue;
            }
        };
        if let Err(NameConflict(there)) = &result {
            findings.push((input, conflict(tree, *there, spec)));
        }
        if let (Ok(item), Link::Text(text)) = (&result, link) {
            tree.texts.insert(*item, text.clone());
        }
        placed.push(result.ok());
    }
}

fn origin(tree: &mut Tree, seen: Stat, link: &Link) -> Origin {
    let Link::Behind(path) = link else { return Origin::Below(seen) };
    tree.linked.push(path.clone());
    Origin::Linked(tree.linked.len() as u32 - 1, seen)
}

/// Opens a file as staging will; answers with the bytes its data takes in the scratch.
fn try_file(path: &Path, seen: &Stat) -> Result<u64, Finding> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => changing(path),
        _ => unreadable(path, "opened", &e),
    };
    let file = path::open(&Linkless(path)).map_err(failed)?;
    let now = Stat::of(&file).map_err(failed)?;
    if !seen.unchanged(&now) {
        return Err(changing(path));
    }
    if now.size == 0 && file.read_at(&mut [0], 0).map_err(failed)? > 0 {
        return Err(bottomless(path));
    }
    let whole = now.size.div_ceil(SECTOR_U64) * SECTOR_U64;
    let sparse = now.blocks.saturating_mul(512) < now.size;
    Ok(if sparse { data_sectors(&file, now.size).unwrap_or(whole) } else { whole })
}

/// Bytes of the sectors that hold data. Fewer blocks than bytes do not prove holes (the file system may compress).
fn data_sectors(file: &File, size: u64) -> nix::Result<u64> {
    let mut sum = 0;
    let mut at = 0;
    while at < size {
        let data = match lseek(file, at as i64, Whence::SeekData) {
            Err(nix::errno::Errno::ENXIO) => break,
            data => data? as u64,
        };
        let end = lseek(file, data as i64, Whence::SeekHole)? as u64;
        let start = (data / SECTOR_U64 * SECTOR_U64).max(at);
        at = end.next_multiple_of(SECTOR_U64);
        sum += at.saturating_sub(start);
    }
    Ok(sum)
}

/// Answers of `job` for `0..jobs`, in order, from a bounded number of threads.
fn in_parallel<T: Send>(jobs: usize, job: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = (jobs / JOBS_PER_THREAD).min(THREADS);
    if threads < 2 {
        return (0..jobs).map(job).collect();
    }
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let start = next.fetch_add(JOBS_PER_THREAD, Ordering::Relaxed);
            if start >= jobs {
                return done;
            }
            let end = (start + JOBS_PER_THREAD).min(jobs);
            done.push((start, (start..end).map(&job).collect::<Vec<T>>()));
        }
    };
    let mut batches: Vec<(usize, Vec<T>)> = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(take)).collect();
        handles.into_iter().flat_map(|h| h.join().expect("a check does not panic")).collect()
    });
    batches.sort_by_key(|(start, _)| *start);
    batches.into_iter().flat_map(|(_, batch)| batch).collect()
}

fn finding(code: Code, subject: &Path, problem: String, remedy: String) -> Finding {
    Finding::new(code, shown(subject), problem, remedy)
}

fn bad_target(source: &Path, input: &InputSpec, why: &str) -> Finding {
    let problem = format!("its place below the input directory, `{}`, is not allowed: {why}", shown(&input.target));
    let remedy = "give a relative path: --input PATH=RELATIVE/PATH".into();
    finding(Code::ImportFailed, source, problem, remedy)
}

fn unreachable(source: &Path, error: &io::Error) -> Finding {
    if error.kind() != io::ErrorKind::NotFound {
        return unreadable(source, "reached", error);
    }
    match path::read_symlink(source) {
        Ok(to) => finding(
            Code::InputUriNotFound,
            source,
            format!("a symbolic link to `{}`, which does not exist", shown(Path::new(&to))),
            "correct the link, or name the data itself".into(),
        ),
        Err(_) => {
            finding(Code::InputUriNotFound, source, "does not exist".into(), "check the spelling of --input".into())
        }
    }
}

fn unreadable(path: &Path, done: &str, error: &io::Error) -> Finding {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let user = nix::unistd::geteuid();
            format!("let user {user} read it (chmod, setfacl -m u:{user}:rX), or start the run as its owner")
        }
        _ => "make it readable on this machine, or leave it out".into(),
    };
    finding(Code::ImportFailed, path, format!("cannot be {done}: {error}"), remedy)
}

fn special(path: &Path, kind: &str) -> Finding {
    let remedy = "copy its contents to a regular file, or leave it out of the inputs".into();
    finding(
        Code::ImportFailed,
        path,
        format!("is a {kind}; files, directories and symbolic links can be staged"),
        remedy,
    )
}

fn astray(link: &Path, to: &Path, missing: bool) -> Finding {
    let (end, remedy) = match missing {
        true => (", which does not exist", "correct the link, or leave it out of the inputs"),
        false => ("", "copy what it points to with --dereference, or name that as an input of its own"),
    };
    let problem = format!("a symbolic link that leaves the input: it leads to {}{end}", shown(to));
    finding(Code::InputLinkOutside, link, problem, remedy.into())
}

fn endless(link: &Path) -> Finding {
    let problem = "a symbolic link that leaves the input and never ends: it leads back to itself".into();
    finding(Code::InputLinkOutside, link, problem, "correct the link, or leave it out of the inputs".into())
}

fn circle(link: &Path, to: &Path) -> Finding {
    let problem = format!("a symbolic link to {}, which it is in itself: a copy would never end", shown(to));
    finding(Code::InputLinkOutside, link, problem, "remove the link, or leave it out of the inputs".into())
}

fn bottomless(path: &Path) -> Finding {
    let remedy = "copy its contents to a regular file, or leave it out of the inputs".into();
    finding(Code::ImportFailed, path, "has contents but no size, like the files of /proc".into(), remedy)
}

fn changing(path: &Path) -> Finding {
    let remedy = "start the run again when nothing writes there".into();
    finding(Code::ModifiedInputResource, path, "changed while preflight looked at it".into(), remedy)
}

fn conflict(tree: &Tree, there: u32, spec: &InputSpec) -> Finding {
    let other = tree.source(there);
    let source = match &spec.source {
        Location::Path(path) => shown(path),
        Location::S3(uri) => uri.to_string(),
    };
    let problem = format!("{} and {source} both claim this path", shown(&other));
    let remedy = format!("give one of them another place: --input {source}=OTHER/PATH");
    finding(Code::InputConflict, &tree.target(there), problem, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_keep_their_order() {
        for jobs in [0, 1, 63, 64, 65, 5000] {
            assert_eq!(in_parallel(jobs, |i| i * 2), (0..jobs).map(|i| i * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_file_that_changes_under_the_check_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("growing");
        fs::write(&path, "1").unwrap();
        let seen = path::stat(&path).unwrap();
        fs::write(&path, "12").unwrap();
        assert_eq!(try_file(&path, &seen).unwrap_err().code, Code::ModifiedInputResource);
        fs::remove_file(&path).unwrap();
        assert_eq!(try_file(&path, &seen).unwrap_err().code, Code::ModifiedInputResource);
    }

    #[test]
    fn holes_take_no_space() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let file = File::create(&path).unwrap();
        file.write_all_at(b"x", 1 << 30).unwrap();
        file.set_len(1 << 40).unwrap();
        let seen = path::stat(&path).unwrap();
        assert_eq!(try_file(&path, &seen).unwrap(), SECTOR_U64);
    }
}
