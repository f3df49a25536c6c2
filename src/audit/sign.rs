//! Signatures of lines: who has the private key wrote them. Ed25519 (RFC 8032); keys in PEM, as `openssl genpkey` writes
//! them (RFC 8410).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ed25519_compact::{KeyPair, PublicKey, SecretKey, Seed, Signature};
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::AuditError;
use crate::units::hex;

/// Stands before the hash of a line in what is signed, so that no signature made for something else fits.
const PURPOSE: &str = "runseal-audit-line-1:";
/// Longest file that is read as a key.
const LONGEST: u64 = 4 << 10;
/// Bits that let others than the owner read or change a file.
const OTHERS: u32 = 0o077;

/// What signs the lines of a trail.
pub struct Signer {
    key: SecretKey,
    name: String,
}

impl Signer {
    /// Reads the private key at `path`, which nobody but its owner may read.
    ///
    /// # Errors
    /// It cannot be read, others may read it, or it is no Ed25519 key.
    pub fn read(path: &Path) -> Result<Self, AuditError> {
        let unfit = |problem: &str, remedy| unfit(path, problem, remedy);
        let file = open(path)?;
        let found = file.metadata().map_err(failed(path))?;
        if found.mode() & OTHERS != 0 {
            return Err(unfit(
                "others may read or change it",
                "chmod 600 it, and make a new key if anybody could read it",
            ));
        }
        if found.uid() != geteuid().as_raw() && found.uid() != 0 {
            return Err(unfit("it belongs to somebody else", "name a key of your own"));
        }
        let text = Zeroizing::new(text(file).map_err(failed(path))?);
        let Ok(pair) = KeyPair::from_pem(&text) else {
            return Err(unfit("it is no private Ed25519 key in PEM", "make one with `runseal audit keygen FILE`"));
        };
        Ok(Self { name: hex(&*pair.pk), key: pair.sk })
    }

    /// The public key, in hexadecimal digits.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The signature of a line that has this hash, in hexadecimal digits.
    pub(super) fn sign(&self, hash: &str) -> String {
        hex(&*self.key.sign(format!("{PURPOSE}{hash}"), None))
    }
}

/// Without the key.
impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A public key, which tells who signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    key: PublicKey,
    name: String,
}

impl Witness {
    /// Reads the public key at `path`.
    ///
    /// # Errors
    /// It cannot be read, or is no Ed25519 key.
    pub fn read(path: &Path) -> Result<Self, AuditError> {
        let text = text(open(path)?).map_err(failed(path))?;
        let key = PublicKey::from_pem(&text).and_then(|key| key.validate().map(|()| key));
        let remedy = "name the file FILE.pub that `runseal audit keygen` made, or what `openssl pkey -pubout` prints";
        let key = key.map_err(|_| unfit(path, "it is no public Ed25519 key in PEM", remedy))?;
        Ok(Self { name: hex(&*key), key })
    }

    /// The key, in hexadecimal digits.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the owner of the private key signed a line with this hash.
    pub(super) fn confirms(&self, hash: &str, signature: &[u8; Signature::BYTES]) -> bool {
        self.key.verify(format!("{PURPOSE}{hash}"), &Signature::new(*signature)).is_ok()
    }
}

/// Makes a key at `path`, for its owner only, and beside it `path` with `.pub` behind for everybody. Returns that path and
/// the public key in hexadecimal digits. Nothing is replaced.
///
/// # Errors
/// There is something already, or it cannot be written.
pub fn generate(path: &Path) -> Result<(PathBuf, String), AuditError> {
    let mut seed = Zeroizing::new([0; Seed::BYTES]);
    getrandom::fill(&mut *seed).map_err(io::Error::from)?;
    let pair = KeyPair::from_seed(Seed::new(*seed));
    let mut public = path.to_owned().into_os_string();
    public.push(".pub");
    let public = PathBuf::from(public);
    write_new(path, 0o600, &Zeroizing::new(pair.sk.to_pem())).map_err(failed(path))?;
    write_new(&public, 0o644, &pair.pk.to_pem()).map_err(failed(&public))?;
    Ok((public, hex(&*pair.pk)))
}

fn write_new(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn open(path: &Path) -> Result<File, AuditError> {
    let flags = (OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed(path))?;
    match file.metadata().map_err(failed(path))?.is_file() {
        true => Ok(file),
        false => Err(unfit(path, "it is not a regular file", "name a key in PEM")),
    }
}

fn text(file: File) -> io::Result<String> {
    // Room for all of it: a string that grows leaves copies behind.
    let mut text = String::with_capacity(LONGEST as usize + 1);
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> AuditError {
    move |source| AuditError::Key { path: path.to_owned(), problem: source.to_string(), remedy: "name another file" }
}

fn unfit(path: &Path, problem: &str, remedy: &'static str) -> AuditError {
    AuditError::Key { path: path.to_owned(), problem: problem.to_owned(), remedy }
}
