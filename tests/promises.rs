//! Every promise in `docs/` has a test that names it, and no test names a promise that does not exist.
//!
//! A promise is an id in bold (`**S-01**`). A test names it with a comment `promise: S-01` (several separated by commas)
//! in `tests/`, in test code of `src/`, or in a script that `scripts/test.sh` runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTS: [(&str, char); 2] = [("docs/semantics.md", 'S'), ("docs/threat-model.md", 'T')];
const TESTS: [&str; 3] = ["tests", "src", "scripts"];

#[test]
fn every_promise_is_tested_and_every_tested_promise_is_made() {
    let promises: BTreeMap<String, String> =
        DOCUMENTS.iter().flat_map(|(path, letter)| promises_in(path, &read(Path::new(path)), *letter)).collect();
    let named = named_in_tests();

    let mut complaints: Vec<String> = promises
        .iter()
        .filter(|(id, _)| !named.contains_key(*id))
        .map(|(id, place)| format!("{place}: {id} has no test; write `// promise: {id}` above one"))
        .collect();
    for (id, places) in &named {
        if !promises.contains_key(id) {
            complaints.extend(places.iter().map(|place| format!("{place}: names {id}, which no document promises")));
        }
    }
    assert!(complaints.is_empty(), "\n  {}\n", complaints.join("\n  "));
}

#[test]
fn ids_are_found_where_they_stand() {
    let text = "- **S-01** one\n\n| x | **S-02** two |\nsee S-09 and **T-01**\n";
    assert_eq!(promises_in("d.md", text, 'S'), [("S-01".into(), "d.md:1".into()), ("S-02".into(), "d.md:3".into())]);
    assert_eq!(ids_named("    // promise: S-01, T-20"), ["S-01", "T-20"]);
    assert_eq!(ids_named("# promise: S-02 (both engines)"), ["S-02"]);
    assert_eq!(ids_named("see S-02"), Vec::<String>::new());
}

#[test]
#[should_panic(expected = "promised twice")]
fn an_id_stands_once() {
    promises_in("d.md", "**S-01** a\n**S-01** b\n", 'S');
}

/// The table of the threat model has a row for each of its promises, and names tests that exist.
#[test]
fn every_promise_of_the_threat_model_has_its_attacker() {
    const THREATS: &str = "docs/threat-model.md";
    let text = read(Path::new(THREATS));
    let rows: Vec<_> = text.lines().filter_map(attacker).collect();
    let mut complaints = Vec::new();
    for (id, place) in promises_in(THREATS, &text, 'T') {
        if !rows.iter().any(|(attacked, ..)| **attacked == *id) {
            complaints.push(format!("{place}: {id} has no row in the table of attackers"));
        }
    }
    for (id, file, test) in rows {
        let tests = fs::read_to_string(root().join(file)).unwrap_or_default();
        if !tests.contains(&format!("fn {test}(")) {
            complaints.push(format!("{THREATS}: {id}: {file} has no test {test}"));
        }
    }
    assert!(complaints.is_empty(), "\n  {}\n", complaints.join("\n  "));
}

/// Promise, file and test of a row `| T-01 | `file::test` | words |`.
fn attacker(line: &str) -> Option<(&str, &str, &str)> {
    let mut cells = line.strip_prefix("| ")?.split(" | ");
    let (id, test) = (cells.next()?, cells.next()?);
    let (file, test) = test.strip_prefix('`')?.strip_suffix('`')?.rsplit_once("::")?;
    (is_id(id) && cells.next().is_some()).then_some((id, file, test))
}

/// Ids in bold with `file:line`.
fn promises_in(path: &str, text: &str, letter: char) -> Vec<(String, String)> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (line, content) in text.lines().enumerate() {
        for id in content.split("**").skip(1).step_by(2).filter(|word| is_id(word) && word.starts_with(letter)) {
            assert!(seen.insert(id.to_owned()), "{path}:{}: {id} is promised twice", line + 1);
            found.push((id.to_owned(), format!("{path}:{}", line + 1)));
        }
    }
    found
}

/// Ids behind `promise:` on one line.
fn ids_named(line: &str) -> Vec<String> {
    let Some((_, list)) = line.split_once("promise: ") else { return Vec::new() };
    list.split([',', ' ']).filter(|word| is_id(word)).map(str::to_owned).collect()
}

/// `S-01`, `T-20`.
fn is_id(word: &str) -> bool {
    let bytes = word.as_bytes();
    (4..=5).contains(&bytes.len())
        && matches!(bytes[0], b'S' | b'T')
        && bytes[1] == b'-'
        && bytes[2..].iter().all(u8::is_ascii_digit)
}

fn named_in_tests() -> BTreeMap<String, Vec<String>> {
    let mut files = Vec::new();
    for folder in TESTS {
        collect(Path::new(folder), &mut files);
    }
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files.iter().filter(|file| !file.ends_with(file!())) {
        for (line, content) in read(file).lines().enumerate() {
            for id in ids_named(content) {
                named.entry(id).or_default().push(format!("{}:{}", file.display(), line + 1));
            }
        }
    }
    named
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root().join(folder)).expect("folders of the repository can be read") {
        let path = folder.join(entry.expect("entries can be read").file_name());
        if root().join(&path).is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "sh") {
            files.push(path);
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
