//! When a dead svd is started again, and from which file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::sys::process::ExitStatus;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// After the death of one that was up: something outside kills it, and the services are not to be alone for long.
const LONGEST_DELAY_UP: Duration = Duration::from_millis(500);
/// A svd that was up for so long has nothing to do with the deaths before it.
const CALM: Duration = Duration::from_secs(10);
/// A svd from a newer file that dies within this time, before it is up, speaks against the file.
const EARLY: Duration = Duration::from_secs(5);
const EARLY_DEATHS: u32 = 2;

/// At once, then after 100 ms, doubling up to 5 s; up to 500 ms for one that was up.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    delay: Duration,
}

impl Backoff {
    /// How long to wait after a death; `up`: since when that svd was up.
    pub(super) fn after_death(&mut self, now: Instant, up: Option<Instant>) -> Duration {
        if up.is_some_and(|up| now.saturating_duration_since(up) >= CALM) {
            self.delay = Duration::ZERO;
        }
        let longest = if up.is_some() { LONGEST_DELAY_UP } else { LONGEST_DELAY };
        let delay = self.delay.min(longest);
        self.delay = (delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
        delay
    }
}

/// What svd is started from. While a newer file has not shown that it works, the one before it is held.
#[derive(Debug)]
pub(super) struct Executables {
    current: OwnedFd,
    previous: Option<OwnedFd>,
    early_deaths: u32,
}

impl Executables {
    pub(super) fn new(current: OwnedFd) -> Executables {
        Executables { current, previous: None, early_deaths: 0 }
    }

    pub(super) fn current(&self) -> BorrowedFd<'_> {
        self.current.as_fd()
    }

    /// To be started from now on. The file before it, given again, takes the newer one back.
    pub(super) fn replace(&mut self, newer: OwnedFd) {
        self.early_deaths = 0;
        if is_same_file(&newer, &self.current) {
            return;
        }
        if self.previous.as_ref().is_some_and(|previous| is_same_file(&newer, previous)) {
            self.previous = None;
            self.current = newer;
            return;
        }
        let unproven = self.previous.is_some();
        let older = std::mem::replace(&mut self.current, newer);
        if !unproven {
            self.previous = Some(older);
        }
    }

    /// svd is up from the current one.
    pub(super) fn works(&mut self) {
        self.previous = None;
        self.early_deaths = 0;
    }

    /// A svd has died that had begun at `began` and was not up. Gives the reason when that makes the newer file the wrong
    /// one; the previous one is the current one again then.
    pub(super) fn died_before_it_was_up(
        &mut self,
        now: Instant,
        began: Instant,
        status: Option<ExitStatus>,
    ) -> Option<String> {
        if self.previous.is_none() || now.saturating_duration_since(began) > EARLY {
            return None;
        }
        self.early_deaths += 1;
        if self.early_deaths < EARLY_DEATHS {
            return None;
        }
        self.early_deaths = 0;
        let newer = std::mem::replace(&mut self.current, self.previous.take()?);
        let how = status.unwrap_or(ExitStatus::Unknown);
        Some(format!(
            "svd from {} {how} before it was up, twice; svd runs from {} again",
            path_of(&newer),
            path_of(&self.current)
        ))
    }
}

fn is_same_file(one: &OwnedFd, other: &OwnedFd) -> bool {
    let stat = |fd: &OwnedFd| nix::sys::stat::fstat(fd).ok().map(|s| (s.st_dev, s.st_ino));
    stat(one).is_some_and(|one| Some(one) == stat(other))
}

fn path_of(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.map_or_else(|_| "a file".into(), |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_limit_and_begin_anew_after_calm() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut backoff = Backoff::default();
        let mut delays = |up| (0..9).map(|_| backoff.after_death(after(9), up).as_millis()).collect::<Vec<_>>();
        assert_eq!(delays(None), [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        // Up, but not for long enough.
        assert_eq!(delays(Some(start)), [500; 9]);
        assert_eq!(backoff.after_death(after(10), Some(start)), Duration::ZERO);
        assert_eq!(backoff.after_death(after(10), None), Duration::from_millis(100));
    }

    fn file(path: &std::path::Path) -> OwnedFd {
        std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a file").into()
    }

    #[test]
    fn a_newer_file_that_dies_early_twice_is_given_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let (old, new, other) = (dir.path().join("old"), dir.path().join("new"), dir.path().join("other"));
        let now = Instant::now();
        let late = now + EARLY + Duration::from_millis(1);
        let died = Some(ExitStatus::Code(1));
        let runs =
            |e: &Executables| path_of(&e.current.try_clone().expect("dup")).rsplit('/').next().map(str::to_owned);
        let mut executables = Executables::new(file(&old));
        for _ in 0..5 {
            assert_eq!(executables.died_before_it_was_up(now, now, died), None, "there is no other");
        }
        executables.replace(file(&new));
        assert_eq!(executables.died_before_it_was_up(now, now, died), None);
        assert_eq!(executables.died_before_it_was_up(late, now, died), None, "not early");
        let why = executables.died_before_it_was_up(now, now, died).expect("the second time");
        assert!(why.contains("new exited with 1 before it was up, twice; svd runs from ") && why.contains("old again"));
        assert_eq!(runs(&executables).as_deref(), Some("old"));

        // One that was never up is not what to go back to.
        executables.replace(file(&other));
        executables.replace(file(&new));
        executables.died_before_it_was_up(now, now, died);
        assert!(executables.died_before_it_was_up(now, now, died).is_some());
        assert_eq!(runs(&executables).as_deref(), Some("old"));

        // Taken back by svd itself: it is the proven one.
        executables.replace(file(&new));
        executables.replace(file(&old));
        assert!(executables.previous.is_none());

        // Once up, it is the only one.
        executables.replace(file(&new));
        executables.works();
        executables.died_before_it_was_up(now, now, died);
        assert_eq!(executables.died_before_it_was_up(now, now, died), None);
        assert_eq!(runs(&executables).as_deref(), Some("new"));
    }
}
