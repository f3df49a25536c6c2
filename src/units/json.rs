//! JSON that says exactly what it is given, in characters that can be shown: hidden ones are escaped (RFC 8259, section 7).

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

use super::text::is_hidden;

/// As `serde_json::to_vec`.
///
/// # Errors
/// `value` cannot be serialized.
pub fn to_vec(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut out, Visible(CompactFormatter)))?;
    Ok(out)
}

/// As `serde_json::to_writer_pretty`, and a line break at the end.
///
/// # Errors
/// `value` cannot be serialized, or `out` does not take it.
pub fn write_pretty(mut out: impl Write, value: &impl Serialize) -> io::Result<()> {
    value.serialize(&mut Serializer::with_formatter(&mut out, Visible(PrettyFormatter::new())))?;
    out.write_all(b"\n")
}

/// Writes strings in another way than `F`, and all else in the same.
struct Visible<F>(F);

impl<F: Formatter> Formatter for Visible<F> {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|&(_, c)| is_hidden(c)) {
            out.write_all(&rest.as_bytes()[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        out.write_all(rest.as_bytes())
    }

    fn begin_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object_value(out)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    // promise: T-44
    #[test]
    fn json_is_exact_and_shows_nothing_hidden() {
        let mut text: String = (0..0x1_ff00).chain(0xe_0000..0xe_1001).filter_map(char::from_u32).collect();
        text.push_str("\u{202e}\u{e0041}end");
        let value = json!({"name": text, "list": [1, {"\u{1b}": null}, []]});
        let mut pretty = Vec::new();
        write_pretty(&mut pretty, &value).expect("memory");
        for written in [to_vec(&value).expect("memory"), pretty] {
            let written = String::from_utf8(written).expect("UTF-8");
            assert!(written.chars().all(|c| c == '\n' || !is_hidden(c)));
            assert_eq!(serde_json::from_str::<Value>(&written).expect("JSON"), value);
        }
    }

    #[test]
    fn the_shape_is_that_of_serde_json() {
        let value = json!({"a": [1, 2, {"b": "c"}], "d": {}, "e": [], "f": "\u{e4}\n\""});
        assert_eq!(to_vec(&value).expect("memory"), serde_json::to_vec(&value).expect("memory"));
        let mut pretty = Vec::new();
        write_pretty(&mut pretty, &value).expect("memory");
        assert_eq!(pretty, [&serde_json::to_vec_pretty(&value).expect("memory")[..], b"\n"].concat());
    }
}
