//! What others wrote must not steer the terminal: control characters are shown, not obeyed.

use std::fmt::Write;

/// For one line of a table or a message: no control characters at all, newlines and tabs included.
pub fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' | '\n' => out.push(' '),
            c => push(&mut out, c),
        }
    }
    out
}

fn push(out: &mut String, c: char) {
    // C1 controls (U+0080 to U+009F) steer some terminals as well.
    if c.is_control() {
        let _ = write!(out, "\\x{:02x}", c as u32);
    } else {
        out.push(c);
    }
}

/// For a stream of bytes that comes in blocks: tabs and newlines stay, other controls and what is not UTF-8 become `\xNN`.
#[derive(Debug, Default)]
pub struct Escaper {
    /// The beginning of a character whose end has not come yet; at most 3 bytes.
    partial: Vec<u8>,
}

impl Escaper {
    pub fn block(&mut self, block: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.partial);
        bytes.extend_from_slice(block);
        let mut out = String::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (good, bad) = match std::str::from_utf8(rest) {
                Ok(text) => (text, None),
                Err(error) => {
                    let (good, _) = rest.split_at(error.valid_up_to());
                    (std::str::from_utf8(good).unwrap_or_default(), Some(error.error_len()))
                }
            };
            for c in good.chars() {
                match c {
                    '\t' | '\n' => out.push(c),
                    c => push(&mut out, c),
                }
            }
            rest = &rest[good.len()..];
            match bad {
                None => {}
                Some(None) => {
                    self.partial = rest.to_vec();
                    break;
                }
                Some(Some(length)) => {
                    escape(&mut out, &rest[..length]);
                    rest = &rest[length..];
                }
            }
        }
        out
    }

    /// What is left when no more comes.
    pub fn end(&mut self) -> String {
        let mut out = String::new();
        escape(&mut out, &std::mem::take(&mut self.partial));
        out
    }
}

fn escape(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(out, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn controls_are_shown() {
        assert_eq!(line("a\x1b[2Jb\nc\td\u{9b}é"), "a\\x1b[2Jb c d\\x9bé");
        let mut escaper = Escaper::default();
        let out = escaper.block(b"\x1b]0;title\x07\tok\n\xff\xc2\x9b\r\n");
        assert_eq!(out, "\\x1b]0;title\\x07\tok\n\\xff\\x9b\\x0d\n");
        assert_eq!(escaper.end(), "");
        assert_eq!(escaper.block(b"\xe2\x82"), "");
        assert_eq!(escaper.block(b"\xac\xe2"), "€");
        assert_eq!(escaper.end(), "\\xe2");
    }

    proptest! {
        #[test]
        fn where_the_blocks_end_does_not_matter(bytes: Vec<u8>, cut in 0usize..64) {
            let whole = |parts: &[&[u8]]| {
                let mut escaper = Escaper::default();
                let mut out: String = parts.iter().map(|p| escaper.block(p)).collect();
                out.push_str(&escaper.end());
                out
            };
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let out = whole(&[a, b]);
            prop_assert_eq!(&out, &whole(&[&bytes]));
            prop_assert!(!out.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
        }
    }
}
