//! Whom a user counts as. Subordinate ids (subuid(5)) are those of their owner: whoever has 65536 of them has one share.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::User;
use parking_lot::Mutex;

/// Who has which subordinate ids, as long as the file stays as it is.
pub struct Accounts {
    file: PathBuf,
    known: Mutex<SubordinateIds>,
}

#[derive(Default)]
struct SubordinateIds {
    stamp: Option<(u64, i64, i64, u64)>,
    ranges: Vec<Range>,
    answers: BTreeMap<u32, u32>,
}

#[derive(Debug, PartialEq, Eq)]
struct Range {
    owner: String,
    first: u32,
    count: u32,
}

impl Accounts {
    /// Of this machine.
    pub fn new() -> Self {
        Self::of_file(Path::new("/etc/subuid"))
    }

    fn of_file(file: &Path) -> Self {
        Self { file: file.to_owned(), known: Mutex::default() }
    }

    /// The user that `user` counts as: itself, or the owner of the range it is in. Nobody counts as root, who has no
    /// limits: a range of root, or of an owner nobody knows, counts as its first id.
    pub fn of(&self, user: u32) -> u32 {
        let mut known = self.known.lock();
        known.refresh(&self.file);
        if let Some(answer) = known.answers.get(&user) {
            return *answer;
        }
        let Some(range) = known.ranges.iter().find(|range| range.holds(user)) else { return user };
        let answer = range.owner().filter(|owner| *owner != 0).unwrap_or(range.first);
        known.answers.insert(user, answer);
        answer
    }
}

impl SubordinateIds {
    fn refresh(&mut self, file: &Path) {
        let stamp = fs::metadata(file).ok().map(|found| (found.ino(), found.mtime(), found.mtime_nsec(), found.len()));
        if stamp != self.stamp {
            let text = fs::read(file).unwrap_or_default();
            let ranges = String::from_utf8_lossy(&text).lines().filter_map(parse).collect();
            *self = Self { stamp, ranges, answers: BTreeMap::new() };
        }
    }
}

impl Range {
    fn holds(&self, user: u32) -> bool {
        user.checked_sub(self.first).is_some_and(|offset| offset < self.count)
    }

    fn owner(&self) -> Option<u32> {
        let by_number = || self.owner.parse().ok();
        User::from_name(&self.owner).ok().flatten().map(|user| user.uid.as_raw()).or_else(by_number)
    }
}

/// `NAME-OR-UID:FIRST:COUNT`
fn parse(line: &str) -> Option<Range> {
    let mut fields = line.trim().split(':');
    let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Range { owner: owner.to_owned(), first: first.parse().ok()?, count: count.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    // promise: T-60
    #[test]
    fn subordinate_ids_count_as_their_owner_and_never_as_root() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("subuid");
        let accounts = Accounts::of_file(&file);
        assert_eq!(accounts.of(100_007), 100_007, "no file");
        fs::write(&file, "4001:100000:65536\nroot:200000:65536\nnobody-knows-me:300000:10\nnonsense\n:x:\n")
            .expect("written");
        for (user, account) in [
            (4001, 4001),
            (99_999, 99_999),
            (100_000, 4001),
            (165_535, 4001),
            (165_536, 165_536),
            (200_001, 200_000),
            (300_009, 300_000),
            (0, 0),
            (u32::MAX, u32::MAX),
        ] {
            assert_eq!(accounts.of(user), account, "{user}");
        }
        fs::write(&file, "4002:100000:65536\n").expect("written");
        assert_eq!(accounts.of(100_000), 4002, "the file has changed");
    }
}
