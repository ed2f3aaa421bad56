//! What goes to stderr while the demo runs: lines, and on a terminal a live one below them.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

pub struct Show {
    /// With `--json`, stdout has the whole story and stderr none.
    quiet: bool,
    bar: Option<ProgressBar>,
}

impl Show {
    pub fn new(quiet: bool) -> Show {
        let bar = (!quiet && io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        Show { quiet, bar }
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            // Empty until something is shown live: an idle spinner says nothing.
            Some(bar) => bar.suspend(|| to_stderr(text)),
            None => to_stderr(text),
        }
    }

    /// The live line, where there is one.
    pub fn live(&self, text: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text());
            bar.tick();
        }
    }

    /// What the live line says, where there is none.
    pub fn plain(&self, text: impl FnOnce() -> String) {
        if self.bar.is_none() && !self.quiet {
            to_stderr(&format!("  {}", text()));
        }
    }

    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether anybody reads it does not matter.
fn to_stderr(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
