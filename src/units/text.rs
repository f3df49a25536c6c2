//! Text on its way out: nothing in it moves a cursor, hides, turns letters around, or begins a line of its own.
//!
//! Names of files, keys of objects and what servers say are chosen by others. They are escaped once, where text leaves
//! this program. In JSON they stay exact: see [`json`](super::json).

use std::fmt::{self, Display, Write};
use std::io;
use std::path::Path;

/// What follows a line break in a message, so that no part of it looks like a line of its own.
const INDENT: &str = "  ";

/// Whether `c` is no character that people see as itself: a control, a character that formats text (those that turn its
/// direction among them), a separator other than the blank, one that is for private use or not assigned, or one that is
/// ignored where it cannot be shown (Unicode, `Default_Ignorable_Code_Point`).
pub fn is_hidden(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    is_ignorable(c) || is_escaped_by_std(c)
}

/// `Default_Ignorable_Code_Point` of Unicode 17, and what else is blank without being a space, as far as the standard library
/// takes it for printable.
fn is_ignorable(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{2800}' | '\u{13441}'..='\u{13442}' | '\u{16fe4}' | '\u{1d159}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// The standard library knows which characters are printable, but tells it of text only. Behind another character, since a
/// mark that combines is printable there.
fn is_escaped_by_std(c: char) -> bool {
    let mut bytes = [b'a'; 5];
    let len = 1 + c.encode_utf8(&mut bytes[1..]).len();
    std::str::from_utf8(&bytes[..len]).is_ok_and(|text| text.escape_debug().nth(2).is_some())
}

/// A value as one line: every hidden character of its text is written out, as in `\n` or `\u{202e}`.
pub struct Shown<T>(pub T);

impl<T: Display> Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.width().is_some() {
            let mut text = String::new();
            write!(Escape { to: &mut text, breaks: Breaks::Escaped }, "{}", self.0)?;
            return f.pad(&text);
        }
        write!(Escape { to: f, breaks: Breaks::Escaped }, "{}", self.0)
    }
}

/// A message: as [`Shown`], but it may have several lines. Those after the first are indented.
pub struct Message<T>(pub T);

impl<T: Display> Display for Message<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape { to: f, breaks: Breaks::Indented { fresh: false } }, "{}", self.0)
    }
}

/// A path as one line: bytes that are no text are written out too, as in `\xff`.
pub fn shown_path(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{}", Shown(chunk.valid()));
        chunk.invalid().iter().for_each(|byte| text.extend(format!("\\x{byte:02x}").chars()));
    }
    text
}

/// Where text leaves that has many lines, or is one: passes it on, and writes hidden characters out.
pub struct Outlet<W> {
    to: W,
    /// Whether each write is one line, which ends at its end.
    lines: bool,
}

impl<W: io::Write> Outlet<W> {
    /// For text of many lines.
    pub fn new(to: W) -> Self {
        Self { to, lines: false }
    }

    /// For a log, which writes each of its lines at once.
    pub fn of_lines(to: W) -> Self {
        Self { to, lines: true }
    }
}

impl<W: io::Write> io::Write for Outlet<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (bytes, end) = match bytes.strip_suffix(b"\n") {
            Some(line) => (line, "\n"),
            None => (bytes, ""),
        };
        let mut text = String::with_capacity(bytes.len() + 1);
        let breaks = if self.lines { Breaks::Escaped } else { Breaks::Kept };
        let mut escape = Escape { to: &mut text, breaks };
        for chunk in bytes.utf8_chunks() {
            // Writing to a string cannot fail.
            let _ = escape.write_str(chunk.valid());
            for byte in chunk.invalid() {
                let _ = write!(escape, "\\x{byte:02x}");
            }
        }
        text.push_str(end);
        self.to.write_all(text.as_bytes())?;
        Ok(bytes.len() + end.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// What becomes of a line break.
enum Breaks {
    Escaped,
    Kept,
    /// Kept, and the line behind it indented; `fresh` right after it.
    Indented {
        fresh: bool,
    },
}

struct Escape<'a, W: ?Sized> {
    to: &'a mut W,
    breaks: Breaks,
}

impl<W: Write + ?Sized> Write for Escape<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|&(_, c)| is_hidden(c)) {
            self.pass(&rest[..at])?;
            match (&mut self.breaks, c) {
                (Breaks::Kept, '\n') => self.to.write_char('\n')?,
                (Breaks::Indented { fresh }, '\n') => {
                    *fresh = true;
                    self.to.write_char('\n')?;
                }
                _ => self.pass(&c.escape_default().to_string())?,
            }
            rest = &rest[at + c.len_utf8()..];
        }
        self.pass(rest)
    }
}

impl<W: Write + ?Sized> Escape<'_, W> {
    /// Passes on what has nothing hidden in it.
    fn pass(&mut self, text: &str) -> fmt::Result {
        if let Breaks::Indented { fresh } = &mut self.breaks
            && *fresh
            && !text.is_empty()
        {
            *fresh = false;
            if !text.starts_with(INDENT) {
                self.to.write_str(INDENT)?;
            }
        }
        self.to.write_str(text)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::io::Write as _;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// Every character that a terminal may obey, a reader may not see, or that begins a line; of those that are for private
    /// use or not assigned only some.
    fn hostile() -> impl Iterator<Item = char> {
        let blocks = [0..0xe000, 0xf8ff..0x1_1400, 0x1_3400..0x1_3500, 0x1_bca0..0x1_bcb0, 0x1_d160..0x1_d200];
        let blocks = blocks.into_iter().chain([0xe_0000..0xe_1001, 0x10_fff0..0x11_0000]);
        blocks.flatten().filter_map(char::from_u32).filter(|&c| is_hidden(c))
    }

    /// By what Unicode says of them, in other words than those above.
    #[test]
    fn controls_formats_and_separators_are_hidden() {
        // All that is assigned but ideographs, and planes for private use.
        for c in (0..0x1_ff00).chain(0xe_0000..0xe_1001).filter_map(char::from_u32) {
            if c.is_control() {
                assert!(is_hidden(c), "control {c:?}");
            }
            let blank = ['\u{115f}', '\u{1160}', '\u{3164}', '\u{ffa0}', '\u{13441}', '\u{13442}'];
            if c.is_alphanumeric() && !blank.contains(&c) {
                assert!(!is_hidden(c), "{c:?}");
            }
            if c.is_whitespace() && c != ' ' {
                assert!(is_hidden(c), "space {c:?}");
            }
        }
        // Categories Cf, Zl and Zp, and the characters of the attacks known as Trojan Source and ASCII smuggling.
        for c in "\u{ad}\u{600}\u{605}\u{61c}\u{6dd}\u{70f}\u{890}\u{8e2}\u{180e}\u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\
                  \u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2060}\u{2061}\u{2066}\u{2067}\u{2068}\u{2069}\
                  \u{206a}\u{206f}\u{feff}\u{fff9}\u{fffb}\u{110bd}\u{13430}\u{1bca0}\u{1d173}\u{e0001}\u{e0020}\u{e007f}\
                  \u{fe0f}\u{e0100}\u{e01ef}\u{34f}\u{3164}\u{e000}\u{10ffff}"
            .chars()
        {
            assert!(is_hidden(c), "{c:?}");
        }
        for c in "azAZ09 ~`\\\"'/:äß漢字ｱहि\u{301}😀€".chars() {
            assert!(!is_hidden(c), "{c:?}");
        }
    }

    // promise: T-44
    #[test]
    fn nothing_hidden_leaves() {
        for c in hostile() {
            let name = format!("a{c}runseal: b");
            let shown = Shown(&name).to_string();
            assert!(!shown.chars().any(is_hidden) && shown != name, "{c:?}");
            assert!(shown.starts_with('a') && shown.ends_with("runseal: b"), "{shown}");
            let message = Message(&name).to_string();
            assert!(message.chars().all(|c| c == '\n' || !is_hidden(c)), "{c:?}");
            assert!(message.lines().skip(1).all(|line| line.starts_with(INDENT)), "{message}");
            let mut out = Vec::new();
            Outlet::of_lines(&mut out).write_all(format!("{name}\n").as_bytes()).expect("memory");
            let log = String::from_utf8(out).expect("UTF-8");
            assert_eq!(log.matches('\n').count(), 1, "{log}");
            assert!(log.trim_end_matches('\n').chars().all(|c| !is_hidden(c)), "{c:?}");
        }
    }

    #[test]
    fn a_message_keeps_its_lines_and_adds_none_at_the_margin() {
        let text = "two\nlines\n\n  and one\n";
        assert_eq!(Message(text).to_string(), "two\n  lines\n\n  and one\n");
        assert_eq!(Message(Message(text)).to_string(), Message(text).to_string());
        assert_eq!(Message("x\n\u{1b}[2J").to_string(), "x\n  \\u{1b}[2J");
        assert_eq!(Shown(Shown("a\tb")).to_string(), "a\\tb");
        assert_eq!(format!("[{:>5}][{:<4}]", Shown("\n"), Shown("ab")), "[   \\n][ab  ]");
    }

    #[test]
    fn bytes_that_are_no_text_are_written_out() {
        let path = Path::new(OsStr::from_bytes(b"/a\xff\x9b31m\xe2\x80/\xc2\x9b/\n"));
        assert_eq!(shown_path(path), r"/a\xff\x9b31m\xe2\x80/\u{9b}/\n");
        let mut out = Vec::new();
        Outlet::new(&mut out).write_all(b"a\xff\nb\x1b\n").expect("memory");
        assert_eq!(out, b"a\\xff\nb\\u{1b}\n");
    }
}
