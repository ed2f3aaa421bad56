//! What svctl needs of a terminal: how large it is, lines that fit into it, and all of it for a while.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr, tcsetattr};
use unicode_width::UnicodeWidthChar;

/// Where nobody says.
const USUAL: (usize, usize) = (80, 24);

/// Columns and lines of the terminal that stdout or stderr is.
pub fn size() -> (usize, usize) {
    match terminal_size::terminal_size() {
        Some((terminal_size::Width(width), terminal_size::Height(height))) if width > 0 && height > 0 => {
            (width.into(), height.into())
        }
        _ => USUAL,
    }
}

/// The text, cut where it would go beyond so many columns.
pub fn fit(text: &str, width: usize) -> String {
    let (mut out, mut used, mut before_last) = (String::new(), 0, 0);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide > width {
            out.truncate(before_last);
            out.push('…');
            return out;
        }
        if used + wide < width {
            before_last = out.len() + c.len_utf8();
        }
        used += wide;
        out.push(c);
    }
    out
}

/// The other screen, no cursor; and back.
const TAKE: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
const GIVE: &str = "\x1b[?25h\x1b[?1049l";

/// What has to be put back.
static TAKEN: Mutex<Option<Taken>> = Mutex::new(None);

struct Taken {
    /// `None`: stdin is no terminal.
    settings: Option<Termios>,
    screen: bool,
}

/// Every key as it is pressed, and nothing shown but what is written: another terminal is behind it. Given back when it is dropped,
/// and before a panic is told.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// stdin must be a terminal.
    pub fn take() -> Raw {
        give_back_at_panic();
        let settings = tcgetattr(io::stdin()).ok();
        if let Some(settings) = &settings {
            let mut raw = settings.clone();
            cfmakeraw(&mut raw);
            // Where it cannot be, keys come with the next line.
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw);
        }
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).replace(Taken { settings, screen: false });
        Raw(())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back_at_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            give_back();
            before(info);
        }));
    });
}

/// The whole screen, and keys as they are pressed. Given back when it is dropped, and before a panic is told.
#[derive(Debug)]
pub struct Whole(());

impl Whole {
    /// stdout must be a terminal.
    pub fn take() -> Whole {
        give_back_at_panic();
        let stdin = io::stdin();
        let settings = if stdin.is_terminal() { tcgetattr(&stdin).ok() } else { None };
        if let Some(settings) = &settings {
            let mut raw = settings.clone();
            raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN);
            raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
            raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
            // Where it cannot be, keys come with the next line; all else is the same.
            let _ = tcsetattr(&stdin, SetArg::TCSADRAIN, &raw);
        }
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).replace(Taken { settings, screen: true });
        write(TAKE);
        Whole(())
    }

    /// Lines from the first one on, and nothing below them.
    pub fn draw(&self, lines: &[String]) {
        let mut text = "\x1b[H".to_owned();
        for (n, line) in lines.iter().enumerate() {
            text.push_str(if n == 0 { "" } else { "\r\n" });
            text.push_str(line);
            // To its end: no flicker.
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        write(&text);
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        give_back();
    }
}

/// Once, whoever comes first.
fn give_back() {
    let Some(taken) = TAKEN.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    if let Some(settings) = taken.settings {
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &settings);
    }
    if taken.screen {
        write(GIVE);
    }
}

/// Who has closed the terminal sees nothing, and is told so by a signal.
fn write(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut_within_its_columns() {
        assert_eq!(fit("release", 7), "release");
        assert_eq!(fit("release", 6), "relea…");
        assert_eq!(fit("日本語", 6), "日本語");
        assert_eq!(fit("日本語", 5), "日本…");
        assert_eq!(fit("日本語", 4), "日…");
        assert_eq!(fit("é", 0), "…");
    }
}
