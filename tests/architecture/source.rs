//! Source files as tokens with line numbers, without comments, strings and test code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One file of `src/`.
pub struct Source {
    /// Path from the root of the repository, with `/`.
    pub path: String,
    /// The whole text.
    pub text: String,
    /// Words and punctuation outside comments, strings and tests.
    pub tokens: Vec<Token>,
    test_lines: usize,
}

/// A word, or one character of punctuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The word or character.
    pub text: String,
    /// Line, from 1.
    pub line: usize,
}

/// Every file below `src/` except those that only tests include (`#[cfg(test)] mod name;`).
pub fn all() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    files.sort();
    let sources: Vec<Source> = files
        .iter()
        .map(|file| {
            let path = file.strip_prefix(root).expect("below the root").to_str().expect("our names are UTF-8");
            Source::new(path, &fs::read_to_string(file).expect("source files can be read"))
        })
        .collect();
    assert!(sources.len() > 10, "the source tree was not found");
    let tests: BTreeSet<String> = sources.iter().flat_map(Source::test_modules).collect();
    let only_test =
        |path: &str| tests.iter().any(|test| path == format!("{test}.rs") || path.starts_with(&format!("{test}/")));
    sources.into_iter().filter(|source| !only_test(&source.path)).collect()
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let tokens = tokenize(text);
        let (tokens, test_lines) = without_tests(tokens);
        Self { path: path.to_owned(), text: text.to_owned(), tokens, test_lines }
    }

    /// First component below `src/`: `src/fs/dir.rs` and `src/fs.rs` belong to `fs`.
    pub fn layer(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        below.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    pub fn lines_without_tests(&self) -> usize {
        self.text.lines().count() - self.test_lines
    }

    /// Modules of the crate that this file names, with the line: `crate::x`, `crate::{x, y::z}`, and `super` chains that
    /// reach the root.
    pub fn references(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        let text = |at: usize| self.tokens.get(at).map_or("", |token| token.text.as_str());
        let mut at = 0;
        while at < self.tokens.len() {
            let start = at;
            let from_root = match text(at) {
                "crate" => true,
                "super" => {
                    let mut ups = 1;
                    while text(at + 1) == ":" && text(at + 2) == ":" && text(at + 3) == "super" {
                        ups += 1;
                        at += 3;
                    }
                    ups >= self.depth()
                }
                _ => false,
            };
            if from_root && text(at + 1) == ":" && text(at + 2) == ":" {
                found.extend(heads(&self.tokens[at + 3..]));
            }
            at = at.max(start) + 1;
        }
        found
    }

    /// Name, first line and number of lines of every function that has a body.
    pub fn functions(&self) -> Vec<(&str, usize, usize)> {
        let named = self.tokens.windows(2).enumerate().filter(|(_, pair)| pair[0].text == "fn");
        // `fn(` is the type of a pointer.
        let named = named.filter(|(_, pair)| pair[1].text != "(");
        let function = |(at, pair): (usize, &'_ [Token])| {
            let end = end_of_item(&self.tokens, at);
            if self.tokens[end - 1].text != "}" {
                return None;
            }
            let (first, last) = (self.tokens[at].line, self.tokens[end - 1].line);
            Some((at + 1, pair[1].line, last - first + 1))
        };
        let found: Vec<_> = named.filter_map(function).collect();
        found.into_iter().map(|(name, line, lines)| (self.tokens[name].text.as_str(), line, lines)).collect()
    }

    /// Name and line of every type and trait that other files of the crate may see; not those that belong to a trait.
    pub fn public_types(&self) -> Vec<(&str, usize)> {
        let mut found = Vec::new();
        for (at, token) in self.tokens.iter().enumerate() {
            if !matches!(token.text.as_str(), "struct" | "enum" | "trait" | "type" | "union") {
                continue;
            }
            let before = |back: usize| at.checked_sub(back).map_or("", |at| self.tokens[at].text.as_str());
            // `pub`, `pub(crate)`, `pub(super)`.
            let is_public = before(1) == "pub" || before(1) == ")" && before(4) == "pub" && before(3) == "(";
            if let (true, Some(name)) = (is_public, self.tokens.get(at + 1)) {
                found.push((name.text.as_str(), name.line));
            }
        }
        found
    }

    /// Number of modules between the root and this file, this file included.
    fn depth(&self) -> usize {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        below.trim_end_matches("/mod.rs").split('/').count()
    }

    /// Paths (without `.rs`) of the modules that this file declares for tests only.
    fn test_modules(&self) -> Vec<String> {
        let home = match self.path.strip_suffix("/mod.rs") {
            Some(folder) => folder.to_owned(),
            None => self.path.trim_end_matches(".rs").to_owned(),
        };
        let tokens = tokenize(&self.text);
        let words: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
        words
            .windows(10)
            .filter(|w| w[..8] == ["#", "[", "cfg", "(", "test", ")", "]", "mod"] && w[9] == ";")
            .map(|w| format!("{home}/{}", w[8]))
            .collect()
    }
}

/// First names of a path or of each path in a brace list.
fn heads(tokens: &[Token]) -> Vec<(usize, String)> {
    let Some(first) = tokens.first() else { return Vec::new() };
    if first.text != "{" {
        return vec![(first.line, first.text.clone())];
    }
    let mut found = Vec::new();
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && (token.text == "," || at == 0) {
            found.extend(tokens.get(at + 1).filter(|next| next.text != "}").map(|next| (next.line, next.text.clone())));
        }
    }
    found
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("folders below src/ can be read") {
        let path = entry.expect("entries can be read").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Drops every item that `#[cfg(test)]` or `#[test]` stands before; returns the rest and the number of lines dropped.
fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, usize) {
    let mut kept = Vec::new();
    let mut dropped = 0;
    let mut at = 0;
    while at < tokens.len() {
        let attribute: String = tokens[at..].iter().take(7).map(|token| token.text.as_str()).collect();
        if attribute == "#[cfg(test)]" || attribute.starts_with("#[test]") {
            let end = end_of_item(&tokens, at);
            dropped += tokens[end - 1].line - tokens[at].line + 1;
            at = end;
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    (kept, dropped)
}

/// Index behind the item whose attributes start at `at`: behind its `;` or its closing brace.
fn end_of_item(tokens: &[Token], mut at: usize) -> usize {
    let mut depth = 0;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth -= 1;
                if depth == 0 && tokens[at].text == "}" {
                    return if tokens.get(at + 1).is_some_and(|next| next.text == ";") { at + 2 } else { at + 1 };
                }
            }
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Words and punctuation outside comments, strings and characters.
fn tokenize(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let next = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => end_of_line(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => end_of_block_comment(&chars, at),
            '"' => end_of_string(&chars, at),
            '\'' => end_of_character(&chars, at),
            'r' | 'b' | 'c' if raw_string(&chars, at).is_some() => raw_string(&chars, at).expect("just seen"),
            'b' | 'c' if chars.get(at + 1) == Some(&'"') => end_of_string(&chars, at + 1),
            'b' if chars.get(at + 1) == Some(&'\'') => end_of_character(&chars, at + 1),
            c if c.is_alphanumeric() || c == '_' => {
                let end =
                    chars[at..].iter().position(|c| !c.is_alphanumeric() && *c != '_').map_or(chars.len(), |n| at + n);
                tokens.push(Token { text: chars[at..end].iter().collect(), line });
                end
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(Token { text: c.to_string(), line });
                }
                at + 1
            }
        };
        line += chars[at..next].iter().filter(|c| **c == '\n').count();
        at = next;
    }
    tokens
}

fn end_of_line(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |n| at + n)
}

fn end_of_block_comment(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 1),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 1),
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Index behind the closing quote of the string whose opening quote is at `at`.
fn end_of_string(chars: &[char], mut at: usize) -> usize {
    at += 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// Index behind `'x'` or `'\n'`; behind the quote alone for a lifetime.
fn end_of_character(chars: &[char], at: usize) -> usize {
    if chars.get(at + 1) == Some(&'\\') {
        let rest = chars[at + 3..].iter().position(|c| *c == '\'');
        return rest.map_or(chars.len(), |n| at + n + 4);
    }
    if chars.get(at + 2) == Some(&'\'') { at + 3 } else { at + 1 }
}

/// Index behind a raw string (`r".."`, `br#".."#`) that starts at `at`.
fn raw_string(chars: &[char], at: usize) -> Option<usize> {
    let mut open = at + usize::from(chars[at] != 'r');
    if chars.get(open) != Some(&'r') {
        return None;
    }
    open += 1;
    let hashes = chars.get(open..)?.iter().take_while(|c| **c == '#').count();
    if chars.get(open + hashes) != Some(&'"') {
        return None;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = open + hashes + 1;
    let end = chars[body..].windows(close.len()).position(|window| window == close)?;
    Some(body + end + close.len())
}
