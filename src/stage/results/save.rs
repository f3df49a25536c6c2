//! Files of a run whose command failed, such as logs, into a place of the output that no later try minds.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};
use sha2::{Digest, Sha256};

use super::files::{as_far_as_kept, make_output, sync};
use super::manifest::Sum;
use super::objects::{Sender, Uploads};
use super::plan::{Plan, TOP};
use super::survey::{Dereference, View, survey};
use crate::aws::{Cloud, UploadSettings};
use crate::fs::{Attr, Kind, ROOT, Scratch};
use crate::preflight::{Output, OutputPrefix};
use crate::spec::{RescueSpec, S3Uri};
use crate::stage::checksum::crc64;
use crate::stage::error::remote;
use crate::stage::{StageError, Stager, Totals, inside, outside};
use crate::sys::beneath::{Anchor, Below};
use crate::sys::path;

/// Name of the list of checksums, which `sha256sum -c` reads. It comes last: then all is there.
const SUMS: &str = "SHA256SUMS";

impl Stager {
    /// Publishes the files of the scratch that `rescue` asks for below `name` in the output, with their paths in the scratch
    /// and a list of checksums. No manifest: these are no results. Answers how many, and where they are.
    pub fn save(
        &self,
        rescue: &RescueSpec,
        name: &str,
        cloud: Option<&Cloud>,
    ) -> Result<Option<(Totals, String)>, StageError> {
        let (all, holds) = survey(&self.scratch, ROOT, &View::default(), Dereference::Untouched)?;
        let plan = chosen(&all, rescue);
        let totals = plan.totals();
        if totals.files == 0 {
            return Ok(None);
        }
        let output = self.target.lock().output.clone();
        match output {
            None => Ok(None),
            Some(Output::Directory(output)) => {
                let rights = self.rights();
                let _in_their_name = rights.assume().map_err(outside("taking the rights for", &output))?;
                let output = make_output(&output, 0o755, &rights)?;
                let place = output.below(name);
                path::make_directory(&place, 0o755).map_err(outside("creating", place.path()))?;
                let place = Anchor::at(&place).map_err(outside("opening", place.path()))?;
                let keep_owners = rights.keep_owners();
                Saving { plan: &plan, scratch: &self.scratch, place: &place, keep_owners }.write()?;
                Ok(Some((totals, path::shown(place.path()))))
            }
            Some(Output::Prefix(to)) => {
                let cloud = cloud.ok_or_else(|| StageError::NoCloud { uri: to.uri.clone() })?;
                let uri = to.uri.below(&format!("{name}/"));
                let settings = UploadSettings { overwrite: false, ..to.settings };
                let sender = self.sender(OutputPrefix { uri: uri.clone(), settings, ..to }, cloud);
                cloud.block_on(sender.save(Uploads::planned(plan, holds, &uri), uri.clone()))?;
                Ok(Some((totals, uri.to_string())))
            }
        }
    }
}

/// The files of `all` that are asked for, and the directories they are in.
fn chosen(all: &Plan, rescue: &RescueSpec) -> Plan {
    let mut asked = vec![false; all.entries.len()];
    let mut needed = HashSet::new();
    for (i, entry) in all.entries.iter().enumerate().skip(1) {
        // What is in a directory that is asked for, is asked for.
        asked[i] = asked[entry.parent] || rescue.saves(&all.path(i));
        if asked[i] && entry.attr.kind == Kind::File {
            let mut at = i;
            while at != TOP && needed.insert(at) {
                at = all.entries[at].parent;
            }
        }
    }
    let mut plan = Plan::new(all.entries[TOP].attr);
    let mut places = vec![TOP; all.entries.len()];
    for (i, entry) in all.entries.iter().enumerate().skip(1).filter(|(i, _)| needed.contains(i)) {
        places[i] = plan.entries.len();
        plan.add(places[entry.parent], &entry.name, entry.attr);
    }
    plan
}

/// Into a directory.
struct Saving<'a> {
    plan: &'a Plan,
    scratch: &'a Scratch,
    place: &'a Anchor,
    keep_owners: bool,
}

impl Saving<'_> {
    fn write(&self) -> Result<(), StageError> {
        for i in self.plan.of_kind(Kind::Directory) {
            let place = self.place(i);
            path::make_directory(&place, 0o700).map_err(outside("creating", place.path()))?;
        }
        let mut sums = Vec::new();
        for i in self.plan.of_kind(Kind::File) {
            let sum = self.file(i)?;
            list(&mut sums, &self.plan.path(i), &sum);
        }
        for i in self.plan.of_kind(Kind::Directory).rev() {
            let (place, attr) = (self.place(i), &self.plan.entries[i].attr);
            let directory = path::open_directory(&place).map_err(outside("opening", place.path()))?;
            finish(&directory, attr, self.keep_owners).map_err(outside("writing", place.path()))?;
        }
        let place = self.place.below(SUMS);
        let written =
            path::create(&place, 0o644).and_then(|mut file| file.write_all(&sums).and_then(|()| file.sync_all()));
        written.map_err(outside("writing", place.path()))?;
        sync(&self.place.itself()).map_err(outside("syncing", self.place.path()))
    }

    fn file(&self, i: usize) -> Result<Sum, StageError> {
        let (place, attr) = (self.place(i), &self.plan.entries[i].attr);
        let mut file = path::create(&place, 0o600).map_err(outside("creating", place.path()))?;
        let (mut hash, mut at, mut buffer) = (Sha256::new(), 0, vec![0; 256 << 10]);
        loop {
            let got = self.scratch.read(attr.ino, at, &mut buffer).map_err(inside("reading", self.plan.path(i)))?;
            if got == 0 {
                break;
            }
            hash.update(&buffer[..got]);
            file.write_all(&buffer[..got]).map_err(outside("writing", place.path()))?;
            at += got as u64;
        }
        finish(&file, attr, self.keep_owners).map_err(outside("writing", place.path()))?;
        Ok(hash.finalize().into())
    }

    fn place(&self, i: usize) -> Below<'_> {
        self.place.below(self.plan.path(i))
    }
}

/// Owner (if it is kept), permission bits without set-user-ID and the like, and time.
fn finish(file: &File, attr: &Attr, keep_owners: bool) -> io::Result<()> {
    if keep_owners {
        as_far_as_kept(fchown(file, Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid))))?;
    }
    as_far_as_kept(fchmod(file, Mode::from_bits_truncate(attr.mode & 0o777)))?;
    let mtime = TimeSpec::new(attr.mtime.secs, attr.mtime.nanos.into());
    as_far_as_kept(futimens(file, &TimeSpec::UTIME_OMIT, &mtime))?;
    as_far_as_kept(file.sync_all())
}

/// A line as sha256sum(1) writes it: names with a line feed or a backslash are escaped, and marked by one.
fn list(sums: &mut Vec<u8>, path: &Path, sum: &Sum) {
    let name = path.as_os_str().as_bytes();
    if name.iter().any(|byte| b"\\\n\r".contains(byte)) {
        sums.push(b'\\');
    }
    sums.extend(crate::units::hex(sum).into_bytes());
    sums.extend(b"  ");
    for &byte in name {
        match byte {
            b'\\' => sums.extend(b"\\\\"),
            b'\n' => sums.extend(b"\\n"),
            b'\r' => sums.extend(b"\\r"),
            byte => sums.push(byte),
        }
    }
    sums.push(b'\n');
}

impl Sender {
    /// Sends all of `uploads`, then the list of checksums; after an error, what is begun is aborted.
    async fn save(self: Arc<Self>, mut uploads: Uploads, to: S3Uri) -> Result<(), StageError> {
        if let Err(error) = self.send_all(&mut uploads).await {
            Arc::clone(&self).abort_all(uploads.pending()).await;
            return Err(error);
        }
        let mut sums = Vec::new();
        for object in &uploads.objects {
            if let Some(sum) = object.state.lock().sum {
                list(&mut sums, &object.path, &sum);
            }
        }
        let (crc, uri) = (crc64(&sums), to.below(SUMS));
        self.put_bytes(&uri, &self.to.settings, sums.into(), crc).await.map(drop).map_err(remote("writing", &uri))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_listed_as_sha256sum_does() {
        let mut sums = Vec::new();
        list(&mut sums, Path::new("work/a b"), &[0; 32]);
        list(&mut sums, Path::new("x\ny\\"), &[255; 32]);
        let expected = format!("{}  work/a b\n\\{}  x\\ny\\\\\n", "00".repeat(32), "ff".repeat(32));
        assert_eq!(String::from_utf8(sums).expect("text"), expected);
    }
}
