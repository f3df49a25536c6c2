//! A file or a tree of the scratch as an archive (tar), as it is now: for rescue, not for results.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::Arc;

use tar::{Builder, EntryType, Header};

use super::results::plan::{Plan, TOP};
use super::results::survey::{Dereference, View, survey};
use super::{Hold, StageError, Totals, inside, outside};
use crate::fs::{FsError, Kind, ROOT, Scratch};

/// Name of the file or directory itself in the archive; what is in it comes below.
pub const TOP_NAME: &str = "top";

/// Writes what is at `path`, relative to the root of the scratch, to `out`. With `bare`, the contents of a file stand alone.
/// Symbolic links are kept, not followed; FIFOs, sockets and devices are left out. A file that grows meanwhile is cut
/// at the size it had, one that shrinks is an error.
pub fn archive(scratch: &Arc<Scratch>, path: &Path, bare: bool, out: impl Write) -> Result<Totals, StageError> {
    let top = find(scratch, path).map_err(inside("finding", path))?;
    let attr = scratch.getattr(top.ino).map_err(inside("examining", path))?;
    if bare && attr.kind == Kind::File {
        let mut contents = Contents { scratch, ino: top.ino, at: 0, size: attr.size };
        io::copy(&mut contents, &mut { out }).map_err(outside("copying", path))?;
        return Ok(Totals { files: 1, bytes: attr.size, ..Totals::default() });
    }
    let (plan, _holds) = match attr.kind {
        Kind::Directory => survey(scratch, top.ino, &View::default(), Dereference::Untouched)?,
        _ => (Plan::new(attr), Vec::new()),
    };
    let mut builder = Builder::new(out);
    for i in TOP..plan.entries.len() {
        append(&mut builder, scratch, &plan, i).map_err(outside("copying", path.join(plan.path(i))))?;
    }
    builder.into_inner().and_then(|mut out| out.flush()).map_err(outside("copying", path))?;
    let file = u64::from(attr.kind == Kind::File);
    let totals = plan.totals();
    Ok(Totals { files: totals.files + file, bytes: totals.bytes + file * attr.size, ..totals })
}

/// The inode at `path`; links on the way are not followed.
fn find(scratch: &Arc<Scratch>, path: &Path) -> Result<Hold, FsError> {
    // Looked up, so that it is held as any other.
    let mut found = Hold::new(scratch, scratch.lookup(ROOT, b".")?.ino);
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                found = Hold::new(scratch, scratch.lookup(found.ino, name.as_bytes())?.ino);
            }
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(FsError::Invalid),
        }
    }
    Ok(found)
}

fn append(builder: &mut Builder<impl Write>, scratch: &Scratch, plan: &Plan, i: usize) -> io::Result<()> {
    let attr = &plan.entries[i].attr;
    let name = Path::new(TOP_NAME).join(plan.path(i));
    // The header has seconds only.
    let time = format!("{}.{:09}", attr.mtime.secs, attr.mtime.nanos);
    builder.append_pax_extensions([("mtime", time.as_bytes())])?;
    let mut header = Header::new_gnu();
    // Whoever unpacks this may be root.
    header.set_mode(attr.mode & 0o1777);
    header.set_mtime(u64::try_from(attr.mtime.secs).unwrap_or(0));
    header.set_size(0);
    match attr.kind {
        Kind::Directory => {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, name, io::empty())
        }
        Kind::Symlink => {
            header.set_entry_type(EntryType::Symlink);
            let target = scratch.readlink(attr.ino).map_err(io::Error::other)?;
            builder.append_link(&mut header, name, Path::new(std::ffi::OsStr::from_bytes(&target)))
        }
        Kind::File => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(attr.size);
            builder.append_data(&mut header, name, Contents { scratch, ino: attr.ino, at: 0, size: attr.size })
        }
        Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
            Err(io::Error::other("is neither a file, a directory nor a link"))
        }
    }
}

/// The first `size` bytes of a file; fewer are an error.
struct Contents<'a> {
    scratch: &'a Scratch,
    ino: u64,
    at: u64,
    size: u64,
}

impl Read for Contents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min((self.size - self.at) as usize);
        if want == 0 {
            return Ok(0);
        }
        let got = self.scratch.read(self.ino, self.at, &mut buffer[..want]).map_err(io::Error::other)?;
        if got == 0 {
            return Err(io::Error::other("it became shorter while it was copied; try again"));
        }
        self.at += got as u64;
        Ok(got)
    }
}
