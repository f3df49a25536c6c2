//! The rules of the source tree that a compiler does not check. The table of layers in `src/lib.rs` is the law for
//! imports; everything else is listed in `CONTRIBUTING.md`.

#[path = "architecture/source.rs"]
mod source;
#[path = "architecture/table.rs"]
mod table;

use std::collections::BTreeMap;
use std::path::Path;

use source::{Source, Token};
use table::Layers;

/// Lines a file may have, tests not counted.
const LONGEST_FILE: usize = 500;
/// Lines a function may have, its signature and closing brace included.
const LONGEST_FUNCTION: usize = 60;
/// Where unsafe code may live.
const UNSAFE_HOMES: [&str; 2] = ["src/sys/", "src/crypt/"];
/// Who may write to standard output and standard error: the command line, and the helper through which `run` speaks.
const SPEAKERS: [&str; 3] = ["src/main.rs", "src/cli/", "src/family/message.rs"];
const SPEECH: [&str; 4] = ["print", "println", "eprint", "eprintln"];
/// Where standard output is written to as it is: the escaping way itself, scripts and pages that are generated, terminals and
/// files that are relayed, and what is for a process of the same family.
const RAW_OUTLETS: [&str; 4] =
    ["src/cli/mod.rs", "src/cli/completions.rs", "src/family/control/visits.rs", "src/run/flush.rs"];
const UNFINISHED: [&str; 3] = ["dbg", "todo", "unimplemented"];

#[test]
fn imports_go_downward_only() {
    let layers = Layers::of_the_crate();
    require(imports_against(&layers, &source::all()));
}

#[test]
fn every_module_of_the_crate_is_in_the_table() {
    let layers = Layers::of_the_crate();
    let missing = source::all()
        .iter()
        .filter(|file| !matches!(file.path.as_str(), "src/lib.rs" | "src/main.rs"))
        .filter(|file| !layers.knows(file.layer()))
        .map(|file| format!("{}:1: `{}` is not in the table of layers in src/lib.rs", file.path, file.layer()))
        .collect();
    require(missing);
}

#[test]
fn staging_cannot_clear_itself() {
    let calls = source::all()
        .iter()
        .filter(|file| file.layer() == "stage")
        .flat_map(|file| {
            find(file, &["preflight", ":", ":", "check"], "staging takes `Cleared`; only `run` calls check")
        })
        .collect();
    require(calls);
}

#[test]
fn unsafe_code_stays_at_home() {
    let strays = source::all()
        .iter()
        .filter(|file| !UNSAFE_HOMES.iter().any(|home| file.path.starts_with(home)))
        .flat_map(|file| {
            let mut found = find(file, &["unsafe"], "unsafe code lives in src/sys and src/crypt only");
            found.extend(find(file, &["allow", "(", "unsafe_code"], "unsafe code lives in src/sys and src/crypt only"));
            found
        })
        .collect();
    require(strays);
}

#[test]
fn every_file_opens_with_its_purpose() {
    let mute = source::all()
        .iter()
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| format!("{}:1: the first line must be `//!` and say what lives here", file.path))
        .collect();
    require(mute);
}

#[test]
fn only_the_command_line_prints() {
    let printing = source::all()
        .iter()
        .filter(|file| !SPEAKERS.iter().any(|home| file.path.starts_with(home)))
        .flat_map(|file| {
            SPEECH.iter().flat_map(move |name| find(file, &[name, "!"], "use tracing, or return the text"))
        })
        .collect();
    require(printing);
}

/// Names of others reach people through these, which let nothing hidden pass.
#[test]
fn text_leaves_through_the_escaping_ways_only() {
    let raw = source::all()
        .iter()
        .flat_map(|file| {
            let mut found = find(file, &[".", "display", "("], "a path is shown by sys::path::shown");
            if !RAW_OUTLETS.contains(&file.path.as_str()) {
                found.extend(find(file, &["io", ":", ":", "stdout"], "answers leave through cli::stdout"));
            }
            found
        })
        .collect();
    require(raw);
}

#[test]
fn nothing_is_left_unfinished_or_unwrapped() {
    let left = source::all()
        .iter()
        .flat_map(|file| {
            let mut found = find(file, &[".", "unwrap", "("], "return the error, or expect(\"why it cannot fail\")");
            for name in UNFINISHED {
                found.extend(find(file, &[name, "!"], "finish it or delete it"));
            }
            found
        })
        .collect();
    require(left);
}

#[test]
fn files_can_be_held_in_mind() {
    let long = source::all()
        .iter()
        .filter(|file| file.lines_without_tests() > LONGEST_FILE)
        .map(|file| {
            format!(
                "{}:1: {} lines without tests, at most {LONGEST_FILE}: split by noun",
                file.path,
                file.lines_without_tests()
            )
        })
        .collect();
    require(long);
}

#[test]
fn functions_can_be_held_in_mind() {
    require(source::all().iter().flat_map(long_functions).collect());
}

/// One idea has one type: who reads a name in a layer need not ask which of two is meant.
#[test]
fn a_public_type_has_a_name_of_its_own_in_its_layer() {
    require(shared_names(&source::all()));
}

/// A table is for comparing; what needs a sentence more goes below it.
#[test]
fn cells_of_tables_are_short() {
    const LONGEST: usize = 200;
    let mut long = Vec::new();
    for (page, text) in documents() {
        for (at, row) in text.lines().enumerate().filter(|(_, line)| line.starts_with('|')) {
            let cells = row.trim_matches('|').split(" | ").map(|cell| cell.chars().count());
            if let Some(length) = cells.max().filter(|&length| length > LONGEST) {
                long.push(format!("{page}:{}: a cell of {length} characters, at most {LONGEST}", at + 1));
            }
        }
    }
    require(long);
}

/// A document that names a file sends its reader there.
#[test]
fn documents_name_files_that_exist() {
    const ROOMS: [&str; 8] = ["src/", "tests/", "benches/", "scripts/", "docs/", "deploy/", "examples/", "fuzz/"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for (page, text) in documents() {
        // Words between backticks, of which every second piece is one.
        for word in text.split('`').skip(1).step_by(2).filter(|word| ROOMS.iter().any(|room| word.starts_with(room))) {
            let path = word.split([' ', ':', '*', '{', '<']).next().unwrap_or_default();
            let path = &path[..path.rfind('/').filter(|_| path != word).map_or(path.len(), |end| end + 1)];
            if path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) && !root.join(path).exists() {
                missing.push(format!("{page}: `{word}` is not there"));
            }
        }
    }
    require(missing);
}

/// The scanner itself: what it must see, and what it must not mistake for code.
mod scanner {
    use super::*;

    const TABLE: &str = "//! | layer | what | may see |\n//! |---|---|---|\n//! | [`top`] | a | everything below |\n\
                         //! | [`mid`] | b | `low` |\n//! | [`low`] | c | nothing |\n//! | [`spec`], [`units`] | d | nothing |\n";

    fn complaints(path: &str, text: &str) -> Vec<String> {
        imports_against(&Layers::parse(TABLE), &[Source::new(path, text)])
    }

    #[test]
    fn sees_every_spelling_of_an_upward_import() {
        for text in [
            "use crate::top::X;",
            "use crate::{low::Y, top::{A, B}};",
            "use crate::{\n    low,\n    top,\n};",
            "fn f() { crate::top::g() }",
            "use super::top::X;",
            "type T = Vec<super :: top :: X>;",
        ] {
            assert_eq!(complaints("src/mid/mod.rs", text).len(), 1, "{text}");
        }
        assert_eq!(complaints("src/mid/deep.rs", "use super::super::top::X;").len(), 1);
        assert_eq!(complaints("src/units.rs", "use crate::spec::X;").len(), 1, "left may see right, not right left");
        assert_eq!(
            complaints("src/low.rs", "use crate::mid::X;"),
            ["src/low.rs:1: `low` must not see `mid` (it may see: spec, units)"]
        );
    }

    #[test]
    fn accepts_downward_imports_comments_strings_and_tests() {
        for text in [
            "use crate::low::X; use crate::units::Y; use crate::spec::Z;",
            "//! see [`crate::top`]\n/* crate::top /* nested */ crate::top */ // crate::top",
            "const S: &str = \"crate::top\"; const R: &str = r#\"crate::top \"quoted\"\"#; const B: &[u8] = b\"crate::top\";",
            "fn f<'a>(c: char) -> bool { c == '\"' } // crate::top \"\n",
            "#[cfg(test)]\nmod tests {\n    use crate::top::X;\n}",
            "#[cfg(test)]\nuse crate::top::X;",
            "use super::sibling;",
        ] {
            assert_eq!(complaints("src/mid/mod.rs", text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn finds_tokens_with_their_line_and_skips_tests() {
        let file = Source::new(
            "src/x.rs",
            "//! X.\nfn f() {\n    g() . unwrap ();\n}\n#[cfg(test)]\nmod t { fn h() { i().unwrap() } }\n",
        );
        assert_eq!(find(&file, &[".", "unwrap", "("], "no"), ["src/x.rs:3: `.unwrap(`: no"]);
        assert_eq!(file.lines_without_tests(), 4);
        let unsafe_word = Source::new("src/x.rs", "//! unsafe\n#![deny(unsafe_code)]\n");
        assert!(find(&unsafe_word, &["unsafe"], "no").is_empty(), "`unsafe_code` is not `unsafe`");
    }

    #[test]
    fn measures_functions_and_not_what_only_looks_like_one() {
        let body = "    x();\n".repeat(LONGEST_FUNCTION - 1);
        let text = format!(
            "trait T {{ fn short(&self); }}\ntype P = fn(u8) -> u8;\nfn fits() {{\n{}}}\nasync fn long<'a>(\n    at: &'a [u8; 2],\n) \
             -> u8 {{\n{body}}}\n#[cfg(test)]\nmod t {{ fn f() {{\n{body}{body}}} }}\n",
            body.split_inclusive('\n').skip(1).collect::<String>(),
        );
        let found = long_functions(&Source::new("src/x.rs", &text));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("`long` has 63 lines"), "{found:?}");
    }

    #[test]
    fn sees_two_types_of_one_name_in_one_layer() {
        let files = |paths: [&str; 2]| {
            let text = ["pub(super) struct Entry;\nstruct Own;\n", "pub enum Entry { A }\nstruct Own;\n"];
            [0, 1].map(|at| Source::new(paths[at], text[at]))
        };
        let one_layer = shared_names(&files(["src/a/x.rs", "src/a/y.rs"]));
        assert_eq!(one_layer.len(), 1, "{one_layer:?}");
        assert!(one_layer[0].contains("src/a/y.rs:1: `Entry` is a type of src/a/x.rs:1 too"), "{one_layer:?}");
        assert!(shared_names(&files(["src/a/x.rs", "src/b/y.rs"])).is_empty());
    }

    #[test]
    #[should_panic(expected = "must see lower rows only")]
    fn refuses_a_table_that_points_up() {
        Layers::parse("//! | layer | what | may see |\n//! | [`a`] | x | nothing |\n//! | [`b`] | x | `a` |\n");
    }
}

/// Path and text of every document for people.
fn documents() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["", "docs", "docs/benchmarks", "deploy/docker", "deploy/systemd", "examples", "tests/posix"] {
        for entry in std::fs::read_dir(root.join(folder)).expect("a folder of documents") {
            let path = entry.expect("an entry").path();
            if path.extension() == Some("md".as_ref()) {
                let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
                found.push((name, std::fs::read_to_string(&path).expect("documents can be read")));
            }
        }
    }
    found
}

/// One complaint per use of a layer that the table does not allow.
fn imports_against(layers: &Layers, files: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        let layer = file.layer();
        for (line, seen) in file.references() {
            if layers.knows(layer) && layers.knows(&seen) && seen != layer && !layers.allow(layer, &seen) {
                let may = layers.visible(layer).join(", ");
                complaints.push(format!("{}:{line}: `{layer}` must not see `{seen}` (it may see: {may})", file.path));
            }
        }
    }
    complaints
}

fn long_functions(file: &Source) -> Vec<String> {
    let functions = file.functions().into_iter();
    let long = functions.filter(|(.., lines)| *lines > LONGEST_FUNCTION).map(|(name, line, lines)| {
        format!("{}:{line}: `{name}` has {lines} lines, at most {LONGEST_FUNCTION}: give its steps names", file.path)
    });
    long.collect()
}

/// One complaint per public type whose name another public type of its layer has.
fn shared_names(files: &[Source]) -> Vec<String> {
    let mut first = BTreeMap::new();
    let mut complaints = Vec::new();
    for file in files {
        for (name, line) in file.public_types() {
            let taken = first.entry((file.layer(), name)).or_insert((&file.path, line));
            // Two of one name in one file are one type in two builds.
            if taken.0 != &file.path {
                let (other, at) = taken;
                complaints
                    .push(format!("{}:{line}: `{name}` is a type of {other}:{at} too: one idea, one type", file.path));
            }
        }
    }
    complaints
}

/// Every place where `pattern` stands in `file` outside tests, comments and strings.
fn find(file: &Source, pattern: &[&str], advice: &str) -> Vec<String> {
    file.tokens
        .windows(pattern.len())
        .filter(|window| window.iter().map(|Token { text, .. }| text.as_str()).eq(pattern.iter().copied()))
        .map(|window| format!("{}:{}: `{}`: {advice}", file.path, window[0].line, pattern.concat()))
        .collect()
}

fn require(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n  {}\n", complaints.join("\n  "));
}
