//! Objects kept in a directory, as `BUCKET/KEY`, beside the memory that serves them.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Double;

/// Where objects are kept.
#[derive(Clone, Debug, Default)]
pub struct Folder(Option<PathBuf>);

impl Folder {
    /// Writes an object down. Keys that no path can stand for (`a//b`, `..`, one that is a directory of others) live in
    /// memory only.
    pub fn keep(&self, bucket: &str, key: &str, body: &[u8]) -> io::Result<()> {
        let Some(path) = self.path(bucket, key) else { return Ok(()) };
        let above = path.parent().expect("below the bucket");
        if path.is_dir() || std::fs::create_dir_all(above).is_err() {
            return Ok(());
        }
        std::fs::write(path, body)
    }

    /// Forgets an object.
    pub fn forget(&self, bucket: &str, key: &str) {
        if let Some(path) = self.path(bucket, key) {
            let _ = std::fs::remove_file(path);
        }
    }

    fn path(&self, bucket: &str, key: &str) -> Option<PathBuf> {
        let plain = key.split('/').all(|part| !matches!(part, "" | "." | ".."));
        plain.then_some(self.0.as_ref()?.join(bucket).join(key))
    }
}

impl Double {
    /// Reads every object below `folder` (`BUCKET/KEY`), and keeps there what is stored from now on.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn keep_objects_in(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut found = Vec::new();
        collect(folder, &mut found)?;
        for file in found {
            let name = file.strip_prefix(folder).expect("below the folder").to_string_lossy().into_owned();
            if let Some((bucket, key)) = name.split_once('/') {
                self.put(bucket, key, Bytes::from(std::fs::read(&file)?));
            }
        }
        self.change(|world| world.folder = Folder(Some(folder.to_owned())));
        Ok(())
    }
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, found)? } else { found.push(path) }
    }
    Ok(())
}
