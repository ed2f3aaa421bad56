//! Programs that try to break out: each tries what a key forbids and fails, and succeeds without the key.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

#[path = "../support/mod.rs"]
mod support;

mod beside;
mod chroot;
mod files;
mod inspected;
mod lacking;
mod network;
mod plain;
mod processes;
mod rights;
mod servers;

use support::plain::python;
use support::svd::{Home, Svd};
use support::{PATIENCE, wait_for};

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// With what the kernel said.
    Refused(String),
}

/// A hostile program: Python that tries, and raises where it fails.
struct Attempt<'a> {
    /// Keys of `[isolation]`.
    keys: &'a str,
    /// Keys of the file's top.
    top: &'a str,
    program: &'a str,
    home: Home,
}

impl<'a> Attempt<'a> {
    fn new(keys: &'a str, program: &'a str) -> Attempt<'a> {
        Attempt { keys, top: "", program, home: Home::Here }
    }

    fn top(self, top: &'a str) -> Attempt<'a> {
        Attempt { top, ..self }
    }

    fn home(self, home: Home) -> Attempt<'a> {
        Attempt { home, ..self }
    }

    fn run(&self) -> Outcome {
        self.run_in(Svd::new())
    }

    /// As a service of an svd that is not started yet.
    fn run_in(&self, mut svd: Svd) -> Outcome {
        let indented = self.program.replace('\n', "\n    ");
        let program = format!(
            "import ctypes, os, signal, socket, sys, time\n\
             libc = ctypes.CDLL(None, use_errno=True)\n\
             def call(name, *args):\n    \
                 if getattr(libc, name)(*args) < 0:\n        \
                     raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))\n\
             try:\n    {indented}\n    print('done', flush=True)\n\
             except BaseException as e:\n    print('refused:', e, flush=True)\n\
             time.sleep(100000)\n"
        );
        let isolation = if self.keys.is_empty() { String::new() } else { format!("[isolation]\n{}\n", self.keys) };
        svd.service("hostile", &python(&program, &format!("{}\n{isolation}", self.top)));
        svd.home = self.home;
        if self.home == Home::PlainUser {
            support::plain::give_to_nobody(&svd);
        }
        svd.start();
        let line = wait_for("what became of the attempt", PATIENCE, || {
            let output = svd.output("hostile");
            // What is not at its end yet would be taken for something else.
            let lines = output.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n'));
            let line = lines.into_iter().find(|l| *l == "done" || l.starts_with("refused:")).map(str::to_owned);
            line.or_else(|| {
                let status = svd.status("hostile");
                let failed = ["failed", "backoff"].contains(&status["state"].as_str().unwrap_or_default());
                assert!(!failed, "it did not start: {status:#}\n{output}");
                None
            })
        });
        match line.strip_prefix("refused:") {
            Some(why) => Outcome::Refused(why.trim().to_owned()),
            None => Outcome::Done,
        }
    }
}

/// The program fails with the key, by this error, and succeeds without.
#[track_caller]
fn breaks_out_only_without(keys: &str, top: &str, program: &str, error: &str) {
    let control = Attempt::new("", program).top(top).run();
    assert_eq!(control, Outcome::Done, "the control");
    match Attempt::new(keys, program).top(top).run() {
        Outcome::Refused(why) if why.contains(error) => {}
        outcome => panic!("with {keys}: {outcome:?}"),
    }
}

/// The program succeeds in spite of the keys.
#[track_caller]
fn works_with(keys: &str, top: &str, program: &str) {
    assert_eq!(Attempt::new(keys, program).top(top).run(), Outcome::Done, "with {keys}");
}
