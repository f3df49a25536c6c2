//! Flags of everything that makes an encrypted store.

use std::path::PathBuf;

use crate::spec::{CpuLatency, EngineChoice, MemoryLock, RunId, StoreSpec};
use crate::units::ByteSize;

/// The least memory that can be asked for.
const LEAST_MEMORY: ByteSize = ByteSize(1 << 20);

use super::Failure;

#[derive(Debug, clap::Args)]
pub struct StoreArgs {
    /// Most the scratch may hold, such as 500MB, 10G or 1.5TiB [default: what the backing has free]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Option<ByteSize>,
    /// Most memory that names, attributes and everything else known of files may take, such as 512M; without room for more,
    /// making files fails with ENOSPC [default: an eighth of the memory there is, 64M to 16G]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<ByteSize>,
    /// Directory on a local disk that takes the ciphertext; repeat it to use several disks [default: $RUNSEAL_BACKING,
    /// separated by colons, or /var/tmp]
    #[arg(long, value_name = "DIR")]
    backing: Vec<PathBuf>,
    /// Name of the run, 1 to 64 of A-Z a-z 0-9 . _ - [default: made up]
    #[arg(long, value_name = "ID")]
    run_id: Option<RunId>,
    /// Cipher engine
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t)]
    cipher_engine: EngineChoice,
    /// Whether to refuse when memory cannot be locked against swapping
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    memory_lock: MemoryLock,
    /// Whether to keep the machine's idle processors from deep sleep while requests come one after another
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    cpu_latency: CpuLatency,
}

impl StoreArgs {
    pub fn into_spec(self) -> Result<(RunId, StoreSpec), Failure> {
        let id = match self.run_id {
            Some(id) => id,
            None => RunId::random()?,
        };
        let backing = if self.backing.is_empty() { backing_of_environment() } else { self.backing };
        // The sealed process works in `/`, so nothing may depend on where the user stands.
        let backing = backing.into_iter().map(std::path::absolute).collect::<Result<_, _>>()?;
        let spec = StoreSpec {
            backing,
            size: self.size,
            memory: self.memory,
            engine: self.cipher_engine,
            memory_lock: self.memory_lock,
            cpu_latency: self.cpu_latency,
        };
        Ok((id, spec))
    }
}

fn size(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("a scratch of size 0 holds nothing; leave --size out to use what is free".to_owned()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

fn memory(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if size < LEAST_MEMORY => Err(format!("less than {LEAST_MEMORY} has no room for a tree of files")),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

pub fn backing_of_environment() -> Vec<PathBuf> {
    let set = std::env::var_os("RUNSEAL_BACKING").unwrap_or_default();
    std::env::split_paths(&set).filter(|path| !path.as_os_str().is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_refused() {
        assert!(memory("1000K").is_err());
        assert_eq!(memory("1M"), Ok(ByteSize(1 << 20)));
    }

    #[test]
    fn a_size_of_nothing_is_refused() {
        assert!(size("0").is_err());
        assert!(size("0G").is_err());
        assert_eq!(size("1K"), Ok(ByteSize(1024)));
    }
}
