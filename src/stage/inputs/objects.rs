//! Objects of S3 into the scratch: concurrent ranged reads, taken up where they were interrupted.
//!
//! Contents pass through one window of memory per request, cut at sectors, and are encrypted from there. A part that
//! fails is asked for again from the byte where it stopped.

use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crc_fast::Digest;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::task::block_in_place;
use tokio::time::{sleep, timeout};

use super::files::PART;
use crate::audit::{Event, Trail};
use crate::aws::{Answer, CallError, Cause, Cloud, Object, ObjectStore, Pieces};
use crate::fs::{Creator, Kind, Scratch, SetAttr, SetTime, Time, WriteMode};
use crate::preflight::tree::{RemoteObject, Tree};
use crate::spec::S3Uri;
use crate::stage::buffers::{Buffer, Buffers};
use crate::stage::checksum::{self, Expected, combined};
use crate::stage::error::{inside, remote};
use crate::stage::tasks::{self, OnError};
use crate::stage::{Hold, Progress, StageError};
use crate::sys::path::FileKind;
use crate::units::hex;

/// Bytes that are collected before they are written: whole sectors, in the cache of the processor.
const WINDOW: usize = 256 << 10;
/// How often a part is taken up again, besides what the client does by itself.
const RETRIES: u32 = 6;
/// Before the first retry; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest time without a byte before a request counts as dead.
const STALL: Duration = Duration::from_secs(60);
/// Permission bits of files that were objects.
const MODE: u32 = 0o644;

/// What all requests of one fetch share.
pub(in crate::stage) struct Download {
    objects: Arc<dyn ObjectStore>,
    scratch: Arc<Scratch>,
    progress: Arc<dyn Progress>,
    trail: Arc<Trail>,
    buffers: Arc<Buffers>,
    caller: Creator,
}

/// An object on its way, shared by its parts.
struct Incoming {
    uri: S3Uri,
    seen: Object,
    /// Path relative to the inputs.
    target: PathBuf,
    /// Inode of the directory it goes into.
    parent: u64,
    name: OsString,
    inside: Mutex<Option<Arc<Hold>>>,
    expected: OnceCell<Expected>,
    /// CRC by part.
    sums: Mutex<Vec<u64>>,
    parts_left: AtomicU64,
}

/// Why a request stopped.
enum Stop {
    /// Asking again may help.
    Call(CallError),
    /// It will not.
    Here(StageError),
}

impl Download {
    pub(in crate::stage) fn new(
        cloud: &Cloud,
        scratch: Arc<Scratch>,
        progress: Arc<dyn Progress>,
        trail: Arc<Trail>,
        caller: Creator,
    ) -> Arc<Self> {
        let (objects, buffers) = (Arc::clone(cloud.objects()), Arc::default());
        Arc::new(Self { objects, scratch, progress, trail, buffers, caller })
    }

    /// Copies every object of `tree`; `directories` are inodes by item.
    pub(in crate::stage) async fn all(
        self: Arc<Self>,
        tree: &Tree,
        directories: &[u64],
        concurrency: usize,
    ) -> Result<(), StageError> {
        let files = (1..tree.items.len() as u32).filter(|&item| tree.kind(item) == FileKind::File);
        let objects = files.filter_map(|item| {
            let name = tree.items[item as usize].name.clone();
            let parent = directories[tree.items[item as usize].parent as usize];
            Some(Arc::new(Incoming::new(tree.object(item)?, tree.target(item), parent, name)))
        });
        let parts = objects.flat_map(|object| {
            let this = Arc::clone(&self);
            (0..object.parts()).map(move |part| Arc::clone(&this).part(Arc::clone(&object), part))
        });
        tasks::run(concurrency, OnError::Cancel, parts).await
    }

    async fn part(self: Arc<Self>, object: Arc<Incoming>, part: u64) -> Result<(), StageError> {
        let request_id = self.copy(&object, part).await?;
        if object.parts_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            block_in_place(|| self.settle(&object))?;
            let event = Event::stage_object(&object.uri, object.seen.size)
                .with("etag", object.seen.etag.as_deref().unwrap_or_default());
            let event = match block_in_place(|| self.sha256(&object))? {
                Some(sum) => event.with("sha256", hex(&sum)),
                None => event,
            };
            self.trail.record(&event.ended(Ok(&request_id)));
            self.progress.file_done();
        }
        Ok(())
    }

    /// Copies one part; answers with the request id of the last request.
    async fn copy(&self, object: &Incoming, part: u64) -> Result<String, StageError> {
        if object.parts() > 1 {
            object.expected.get_or_try_init(|| self.checksums(object)).await?;
        }
        let hold = block_in_place(|| self.open(object))?;
        let mut sink = Sink { hold: &hold, object, range: object.range(part), filled: 0, crc: None };
        sink.restart(object.range(part));
        let mut window = self.buffers.take(WINDOW.min(object.seen.size as usize));
        let mut failures = 0;
        loop {
            match self.stream(&mut sink, &mut window).await {
                Ok(request_id) => {
                    object.sums.lock()[part as usize] = sink.crc.map_or(0, |crc| crc.finalize());
                    return Ok(request_id);
                }
                Err(Stop::Call(error)) if failures < RETRIES && passes(error.cause) => {
                    if sink.position() == sink.range.end {
                        // All bytes came, and yet something was wrong with them.
                        sink.restart(object.range(part));
                    }
                    sleep(PAUSE * (1 << failures)).await;
                    failures += 1;
                }
                Err(Stop::Call(error)) => {
                    let event = Event::stage_object(&object.uri, object.seen.size);
                    self.trail.record(&event.ended(Err((&error.code, &error.message, &error.request_id))));
                    return Err(object.unread(error));
                }
                Err(Stop::Here(error)) => return Err(error),
            }
        }
    }

    /// Reads from where `sink` stands to the end of its part.
    async fn stream(&self, sink: &mut Sink<'_>, window: &mut Buffer) -> Result<String, Stop> {
        let Sink { object, .. } = *sink;
        let rest = sink.position()..sink.range.end;
        let whole = rest == (0..object.seen.size);
        let range = (!whole).then(|| rest.clone());
        let answer = self.objects.get(&object.uri.bucket, &object.uri.key, object.seen.etag.as_deref(), range).await;
        let Answer { value: (seen, mut pieces), request_id } = answer.map_err(Stop::Call)?;
        if object.parts() == 1 && sink.crc.is_none() && sink.position() == 0 {
            // A read of the whole brings the checksum along.
            sink.crc = object.expected.get_or_init(|| async { Expected::of(&seen) }).await.digest();
        }
        while let Some(piece) = next(&mut pieces).await {
            let mut piece = &piece.map_err(Stop::Call)?[..];
            if piece.len() as u64 > sink.range.end - sink.position() {
                return Err(Stop::Call(broken("more bytes came than were asked for")));
            }
            while !piece.is_empty() {
                let taken = piece.len().min(window.len() - sink.filled);
                window[sink.filled..sink.filled + taken].copy_from_slice(&piece[..taken]);
                sink.filled += taken;
                piece = &piece[taken..];
                if sink.filled == window.len() {
                    self.flush(sink, window)?;
                }
            }
        }
        if sink.position() < sink.range.end {
            return Err(Stop::Call(broken("the connection ended before all bytes had come")));
        }
        self.flush(sink, window)?;
        Ok(request_id)
    }

    /// Writes what the window holds.
    fn flush(&self, sink: &mut Sink, window: &Buffer) -> Result<(), Stop> {
        let data = &window[..sink.filled];
        let write = || {
            if let Some(crc) = &mut sink.crc {
                crc.update(data);
            }
            self.scratch.write(sink.hold.ino, sink.range.start, data, WriteMode::default())
        };
        block_in_place(write).map_err(|e| Stop::Here(inside("writing", &sink.object.target)(e)))?;
        self.progress.advance(data.len() as u64);
        sink.range.start += data.len() as u64;
        sink.filled = 0;
        Ok(())
    }

    /// Asks for the checksums of an object that is read in parts: answers to ranged reads do not have them.
    async fn checksums(&self, object: &Incoming) -> Result<Expected, StageError> {
        let answer = self.objects.checksums(&object.uri.bucket, &object.uri.key, object.seen.etag.as_deref()).await;
        answer.map(|answer| Expected::of(&answer.value)).map_err(|e| object.unread(e))
    }

    /// Makes the file, for the first part that comes along.
    fn open(&self, object: &Incoming) -> Result<Arc<Hold>, StageError> {
        let mut slot = object.inside.lock();
        if let Some(hold) = &*slot {
            return Ok(Arc::clone(hold));
        }
        let made = self.scratch.mknod(object.parent, object.name.as_bytes(), Kind::File, 0o600, 0, &self.caller);
        let hold = Hold::new(&self.scratch, made.map_err(inside("creating", &object.target))?.ino);
        if object.parts() > 1 {
            // Parts arrive in any order.
            let size = SetAttr { size: Some(object.seen.size), ..SetAttr::default() };
            self.scratch.setattr(hold.ino, &size).map_err(inside("writing", &object.target))?;
        }
        Ok(Arc::clone(slot.insert(Arc::new(hold))))
    }

    /// Compares a whole file with its checksum and gives it its attributes.
    fn settle(&self, object: &Incoming) -> Result<(), StageError> {
        let hold = self.open(object)?;
        let damaged = |algorithm| Err(StageError::Damaged { uri: object.uri.clone(), algorithm });
        match object.expected.get() {
            Some(&Expected::Crc(algorithm, expected)) => {
                let sums = object.sums.lock();
                let parts = sums.iter().zip(0..).map(|(&sum, part)| (sum, length(&object.range(part))));
                if combined(algorithm, parts) != expected {
                    return damaged(algorithm);
                }
            }
            Some(Expected::Sha(algorithm, expected)) if self.hash(object, hold.ino)? != *expected => {
                return damaged(*algorithm);
            }
            _ => {}
        }
        let mtime = SetTime::At(Time { secs: object.seen.modified, nanos: 0 });
        let set = SetAttr { mode: Some(MODE), mtime: Some(mtime), ..SetAttr::default() };
        self.scratch.setattr(hold.ino, &set).map(drop).map_err(inside("writing", &object.target))
    }

    /// What a trail tells of the contents that are in the scratch now, if one is kept.
    fn sha256(&self, object: &Incoming) -> Result<Option<[u8; 32]>, StageError> {
        if !self.trail.is_kept() {
            return Ok(None);
        }
        let (hold, mut window) = (self.open(object)?, self.buffers.take(WINDOW));
        let sum = checksum::sha256(&self.scratch, hold.ino, &mut window);
        sum.map(Some).map_err(inside("reading", &object.target))
    }

    /// Reads the file back, for hashes that need all bytes in order.
    fn hash(&self, object: &Incoming, ino: u64) -> Result<Vec<u8>, StageError> {
        let Some(mut hash) = object.expected.get().and_then(Expected::in_order) else { return Ok(Vec::new()) };
        let mut window = self.buffers.take(WINDOW);
        let mut at = 0;
        loop {
            let got = self.scratch.read(ino, at, &mut window).map_err(inside("reading", &object.target))?;
            if got == 0 {
                return Ok(hash.finish());
            }
            hash.update(&window[..got]);
            at += got as u64;
        }
    }
}

impl Incoming {
    fn new(object: &RemoteObject, target: PathBuf, parent: u64, name: OsString) -> Self {
        let parts = parts_of(object.seen.size);
        Self {
            uri: object.uri.clone(),
            seen: object.seen.clone(),
            target,
            parent,
            name,
            inside: Mutex::new(None),
            expected: OnceCell::new(),
            sums: Mutex::new(vec![0; parts as usize]),
            parts_left: AtomicU64::new(parts),
        }
    }

    fn parts(&self) -> u64 {
        parts_of(self.seen.size)
    }

    fn range(&self, part: u64) -> Range<u64> {
        let start = part * PART;
        start..(start + PART).min(self.seen.size)
    }

    /// An object that is gone, or another one now, was changed.
    fn unread(&self, error: CallError) -> StageError {
        match error.cause {
            Cause::Precondition | Cause::NotFound => StageError::Modified { path: self.uri.to_string().into() },
            _ => remote("reading", &self.uri)(error),
        }
    }
}

/// Where the bytes of a part go.
struct Sink<'a> {
    hold: &'a Hold,
    object: &'a Incoming,
    /// What is not written yet.
    range: Range<u64>,
    /// How much of that is in the window.
    filled: usize,
    crc: Option<Digest>,
}

impl Sink<'_> {
    fn position(&self) -> u64 {
        self.range.start + self.filled as u64
    }

    fn restart(&mut self, range: Range<u64>) {
        self.range = range;
        self.filled = 0;
        self.crc = self.object.expected.get().and_then(Expected::digest);
    }
}

async fn next(pieces: &mut Pieces) -> Option<Result<bytes::Bytes, CallError>> {
    match timeout(STALL, pieces.next()).await {
        Ok(piece) => piece,
        Err(_) => Some(Err(CallError { cause: Cause::Unreachable, ..broken("no data for 60 seconds") })),
    }
}

/// Whether asking again may help.
fn passes(cause: Cause) -> bool {
    match cause {
        Cause::Unreachable | Cause::Corrupt => true,
        Cause::Denied
        | Cause::NotFound
        | Cause::Precondition
        | Cause::KeyState
        | Cause::KeyKind
        | Cause::Archived
        | Cause::Credentials
        | Cause::Configuration
        | Cause::Rejected => false,
    }
}

fn broken(message: &str) -> CallError {
    CallError::unanswered("s3:GetObject", Cause::Corrupt, message)
}

fn parts_of(size: u64) -> u64 {
    size.div_ceil(PART).max(1)
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}
