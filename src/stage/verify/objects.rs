//! Published results in S3 against their manifest.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use bytes::Buf;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};

use super::{Demands, Difference, Line, ManifestView, Problem, Tally, Verification, VerifyError, other_manifest};
use crate::aws::{CallError, Cause, ChecksumAlgorithm, Cloud, ObjectStore};
use crate::spec::S3Uri;
use crate::stage::results::manifest::{MANIFEST, base64};
use crate::stage::results::older::LONGEST;

/// Objects that are looked at at once.
const CONCURRENCY: usize = 16;
/// Keys asked for in one page of a listing, as many as S3 gives.
const PAGE: u16 = 1000;

/// How a result came out, unless AWS stood in the way of all.
type Outcome = Result<Result<(), (Problem, String)>, VerifyError>;

/// Compares what is below `output` with its manifest.
///
/// # Errors
/// The manifest cannot be read, or is none; AWS refuses to list or to read at all.
pub fn prefix(output: &S3Uri, cloud: &Cloud, demands: &Demands) -> Result<Verification, VerifyError> {
    let check = Check { output, store: &**cloud.objects(), demands };
    cloud.block_on(check.run())
}

struct Check<'a> {
    output: &'a S3Uri,
    store: &'a dyn ObjectStore,
    demands: &'a Demands,
}

impl Check<'_> {
    async fn run(&self) -> Result<Verification, VerifyError> {
        let listed = match other_manifest(self.demands) {
            Some(listed) => listed?,
            None => self.manifest().await?,
        };
        let present = self.listing().await?;
        let mut found = Tally::default();
        let mut expected = HashSet::from([self.uri(MANIFEST).key]);
        let mut files = Vec::new();
        for line in &listed.document.files {
            match self.key(line) {
                Some(key) if expected.insert(key.to_owned()) => files.push((line, key)),
                _ => {
                    let problem = "the manifest tells no key of its own for it, below the output";
                    found.file(line, Err((Problem::Unsafe, problem.to_owned())));
                }
            }
        }
        for line in listed.document.directories.iter().filter(|line| line.key.is_some()) {
            let there = self.key(line).is_some_and(|key| expected.insert(key.to_owned()) && present.contains_key(key));
            if !there {
                found.differences.push(Difference::new(Problem::Missing, &line.path(), "its marker is not there"));
            }
        }
        let compare = |(line, key)| {
            let size = present.get(key).copied();
            async move { (line, self.compare(line, key, size).await) }
        };
        let mut compared = stream::iter(files).map(compare).buffer_unordered(CONCURRENCY);
        while let Some((line, outcome)) = compared.next().await {
            found.file(line, outcome?);
        }
        drop(compared);
        let kept: HashSet<PathBuf> = listed.kept().collect();
        for key in present.keys().filter(|key| !expected.contains(*key)) {
            let path = Path::new(key.strip_prefix(&*self.output.key).unwrap_or(key));
            if !kept.contains(path) {
                found.differences.push(Difference::new(Problem::Extra, path, "the manifest does not list it"));
            }
        }
        Ok(listed.verification(self.output.to_string(), !self.demands.stored_checksums, found, self.demands))
    }

    /// The key of a line, if it is one below the output.
    fn key<'a>(&self, line: &'a Line) -> Option<&'a str> {
        line.key.as_deref().filter(|key| key.len() > self.output.key.len() && key.starts_with(&*self.output.key))
    }

    fn uri(&self, below: &str) -> S3Uri {
        self.output.below(below)
    }

    async fn manifest(&self) -> Result<ManifestView, VerifyError> {
        let uri = self.uri(MANIFEST);
        let answer = self.store.get(&uri.bucket, &uri.key, None, None).await;
        let (object, pieces) = answer.map_err(|error| remote(&uri, error))?.value;
        if object.size > LONGEST {
            return Err(VerifyError::Unfit { place: uri.to_string(), problem: "it is too long".to_owned() });
        }
        let pieces: Vec<_> = pieces.try_collect().await.map_err(|error| remote(&uri, error))?;
        ManifestView::read(&uri.to_string(), pieces.concat().reader(), self.demands)
    }

    /// Sizes of all that is below the output, by key.
    async fn listing(&self) -> Result<BTreeMap<String, u64>, VerifyError> {
        let (mut present, mut start) = (BTreeMap::new(), None);
        loop {
            let answer = self.store.list(&self.output.bucket, &self.output.key, start.as_ref(), PAGE).await;
            let page = answer.map_err(|error| remote(self.output, error))?.value;
            present.extend(page.objects.into_iter().map(|object| (object.key, object.size)));
            match page.next {
                next @ Some(_) => start = next,
                None => return Ok(present),
            }
        }
    }

    async fn compare(&self, line: &Line, key: &str, size: Option<u64>) -> Outcome {
        let uri = self.output.with_key(key.to_owned());
        let Some(size) = size else { return Ok(Err((Problem::Missing, "it is not there".to_owned()))) };
        let differs = match line.differs_in_size(size) {
            Some(differs) => Ok(Some(differs)),
            None if self.demands.stored_checksums => self.stored(line, &uri).await,
            None => self.contents(line, &uri).await,
        };
        match differs {
            Ok(None) => Ok(Ok(())),
            Ok(Some(differs)) => Ok(Err((Problem::Changed, differs))),
            Err(error) => match error.cause {
                Cause::NotFound => Ok(Err((Problem::Missing, "it is not there".to_owned()))),
                Cause::Corrupt => Ok(Err((Problem::Changed, error.to_string()))),
                Cause::Denied | Cause::Archived | Cause::KeyState | Cause::Precondition => {
                    Ok(Err((Problem::Unreadable, error.to_string())))
                }
                _ => Err(remote(&uri, error)),
            },
        }
    }

    async fn contents(&self, line: &Line, uri: &S3Uri) -> Result<Option<String>, CallError> {
        let answer = self.store.get(&uri.bucket, &uri.key, None, None).await;
        let mut pieces = answer?.value.1;
        let (mut hash, mut read) = (Sha256::new(), 0);
        while let Some(piece) = pieces.try_next().await? {
            hash.update(&piece);
            read += piece.len() as u64;
        }
        Ok(line.differs(read, hash))
    }

    async fn stored(&self, line: &Line, uri: &S3Uri) -> Result<Option<String>, CallError> {
        let answer = self.store.checksums(&uri.bucket, &uri.key, None).await;
        let object = answer?.value;
        let sum = object.checksums.iter().find(|sum| sum.algorithm == ChecksumAlgorithm::Crc64Nvme);
        let sum = sum.and_then(|sum| Some(base64(u64::from_be_bytes(sum.value.as_slice().try_into().ok()?))));
        Ok(match (sum, &line.crc64nvme) {
            (Some(sum), Some(wanted)) if sum == *wanted => line.differs_in_size(object.size),
            (Some(sum), Some(wanted)) => Some(format!("its CRC-64/NVME is {sum}, the manifest says {wanted}")),
            _ => Some("S3 or the manifest has no CRC-64/NVME of it; leave out --stored-checksums".to_owned()),
        })
    }
}

fn remote(uri: &S3Uri, source: CallError) -> VerifyError {
    VerifyError::Remote { place: uri.to_string(), source: Box::new(source) }
}
