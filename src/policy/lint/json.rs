//! JSON with the place of every value, duplicate names kept.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Deepest nesting that is read. Policies need seven.
const DEEPEST: usize = 64;

/// A place in a text, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

/// A value and its place.
#[derive(Debug)]
pub struct Node {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub value: Tree,
}

/// A value.
#[derive(Debug)]
pub enum Tree {
    /// `{...}`, in order.
    Object(Vec<Entry>),
    /// `[...]`
    Array(Vec<Node>),
    /// `"..."`
    Text(String),
    /// A number, `true`, `false` or `null`, as written.
    Plain(String),
}

/// A name and its value.
#[derive(Debug)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// Where the name begins.
    pub at: Position,
    /// Value.
    pub node: Node,
}

/// Why a text is not JSON, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where reading failed.
    pub at: Position,
    /// What was expected.
    pub problem: String,
}

/// Reads `text`.
pub fn parse(text: &str) -> Result<Node, SyntaxError> {
    let failed = |error: serde_json::Error| {
        let line = error.line().max(1);
        // serde counts bytes.
        let read = text.split('\n').nth(line - 1).unwrap_or_default().bytes().take(error.column());
        let column = read.filter(|byte| !matches!(byte, 0x80..0xc0)).count().max(1);
        let at = Position { line, column };
        // The place is told apart from the text.
        let problem = error.to_string();
        let problem = problem.split(" at line ").next().unwrap_or_default().to_owned();
        SyntaxError { at, problem }
    };
    let raw: &RawValue = serde_json::from_str(text).map_err(failed)?;
    Reader { text }.node(raw, 0)
}

struct Reader<'a> {
    text: &'a str,
}

impl<'a> Reader<'a> {
    fn node(&self, raw: &'a RawValue, depth: usize) -> Result<Node, SyntaxError> {
        let at = self.position(raw);
        let source = raw.get();
        if depth > DEEPEST {
            return Err(SyntaxError { at, problem: format!("nested deeper than {DEEPEST} levels") });
        }
        let failed = |error: serde_json::Error| SyntaxError { at, problem: error.to_string() };
        let value = match source.as_bytes().first() {
            Some(b'{') => {
                let Entries(entries) = serde_json::from_str(source).map_err(failed)?;
                let entries = entries.into_iter().map(|(name, value)| {
                    let at = self.position(name);
                    let name = serde_json::from_str(name.get()).map_err(failed)?;
                    Ok(Entry { name, at, node: self.node(value, depth + 1)? })
                });
                Tree::Object(entries.collect::<Result<_, _>>()?)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(source).map_err(failed)?;
                Tree::Array(items.into_iter().map(|item| self.node(item, depth + 1)).collect::<Result<_, _>>()?)
            }
            Some(b'"') => Tree::Text(serde_json::from_str(source).map_err(failed)?),
            _ => Tree::Plain(source.to_owned()),
        };
        Ok(Node { at, value })
    }

    /// Raw values are borrowed from the text, so the distance of the two is the place.
    fn position(&self, raw: &RawValue) -> Position {
        let before = &self.text[..raw.get().as_ptr().addr() - self.text.as_ptr().addr()];
        let line = before.rsplit('\n').next().unwrap_or_default();
        Position { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
    }
}

/// The entries of an object in their order, none merged.
struct Entries<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_value_has_its_place() {
        let node = parse("{\n  \"ä\": [1,\n    {\"b\": \"x\\ny\"}],\n  \"ä\": null\n}").expect("JSON");
        let Tree::Object(entries) = node.value else { panic!("an object") };
        let place = |at: Position| (at.line, at.column);
        assert_eq!(entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["ä", "ä"]);
        assert_eq!((place(entries[0].at), place(entries[0].node.at)), ((2, 3), (2, 8)));
        assert_eq!((place(entries[1].at), place(entries[1].node.at)), ((4, 3), (4, 8)));
        let Tree::Array(items) = &entries[0].node.value else { panic!("an array") };
        assert_eq!(place(items[1].at), (3, 5));
        let Tree::Object(inner) = &items[1].value else { panic!("an object") };
        assert!(matches!(&inner[0].node.value, Tree::Text(text) if text == "x\ny"));
        assert_eq!(place(inner[0].node.at), (3, 11));
    }

    #[test]
    fn errors_have_their_place_and_depth_is_bounded() {
        let error = parse("{\n \"a\": 1\n \"b\": 2}").expect_err("a comma is missing");
        assert_eq!((error.at.line, error.problem.as_str()), (3, "expected `,` or `}`"));
        let error = parse("{\n\"ä\": \"ä\" 1}").expect_err("a comma is missing");
        assert_eq!((error.at.line, error.at.column), (2, 10), "characters, not bytes");
        assert!(parse("").is_err());
        assert!(parse("{} {}").is_err());
        assert!(parse("{\"a\": \"\\q\"}").is_err());
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert!(parse(&deep).is_err());
        let deep = "[".repeat(50) + &"]".repeat(50);
        assert!(parse(&deep).is_ok());
    }
}
