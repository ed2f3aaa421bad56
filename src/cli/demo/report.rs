//! The summary.

use std::fmt::Write;
use std::time::Duration;

use super::load::Counts;

pub struct Report {
    pub server: String,
    /// Why it is not gunicorn.
    pub fallback: Option<String>,
    /// How long the load lasted.
    pub seconds: Duration,
    /// Longest gap between two answers before anything was reloaded.
    pub quiet: Duration,
    pub counts: Counts,
    pub steps: Vec<Step>,
}

/// One reload.
pub struct Step {
    pub release: String,
    pub took: Duration,
    /// svd refused the new release and the old one runs on.
    pub kept: bool,
    /// svd's reason.
    pub refused: Option<Box<str>>,
}

impl Step {
    fn is_good(&self) -> bool {
        match self.release.as_str() {
            "broken" => self.kept,
            _ => self.refused.is_none(),
        }
    }
}

impl Report {
    /// Nothing failed, the good releases came and the broken one was kept off.
    pub fn is_good(&self) -> bool {
        self.counts.failed == 0 && self.counts.requests > 0 && self.steps.iter().all(Step::is_good)
    }

    fn kept_old(&self) -> usize {
        self.steps.iter().filter(|s| s.kept).count()
    }

    pub fn render(&self, json: bool) -> String {
        if json { format!("{}\n", self.json()) } else { self.text() }
    }

    fn json(&self) -> serde_json::Value {
        let steps = self.steps.iter().map(|s| {
            serde_json::json!({
                "release": s.release,
                "ok": s.refused.is_none(),
                "kept_old": s.kept,
                "took_ms": millis(s.took),
                "message": s.refused,
            })
        });
        serde_json::json!({
            "ok": self.is_good(),
            "requests": self.counts.requests,
            "failed": self.counts.failed,
            "reloads": self.steps.len(),
            "kept_old": self.kept_old(),
            "longest_gap_ms": millis(self.counts.longest_gap),
            "longest_gap_before_reloads_ms": millis(self.quiet),
            "slowest_ms": millis(self.counts.slowest),
            "kept_connections_closed": self.counts.closed,
            "seconds": round(self.seconds.as_secs_f64()),
            "server": self.server,
            "fallback": self.fallback,
            "by_release": self.counts.releases,
            "steps": steps.collect::<Vec<_>>(),
            "errors": self.counts.errors,
        })
    }

    fn text(&self) -> String {
        let mut out = format!("\n{:<22}{:>9}  {}\n", "reload to release", "took", "outcome");
        for step in &self.steps {
            let outcome = match (&step.refused, step.kept) {
                (None, _) => "it serves; the old generation finished its requests",
                (Some(_), true) => "kept off; the old release went on",
                (Some(_), false) => "failed",
            };
            let took = format!("{:.1} s", step.took.as_secs_f64());
            let _ = writeln!(out, "{:<22}{took:>9}  {outcome}", step.release);
        }
        let _ = writeln!(out, "\n{:<22}{:>9}", "answered by release", "requests");
        for (release, count) in &self.counts.releases {
            let _ = writeln!(out, "{release:<22}{count:>9}");
        }
        let counts = &self.counts;
        let _ = writeln!(
            out,
            "\n{} requests in {:.0} s to {}; {} failed. Longest gap between two answers: {} ms ({} ms before the first reload).",
            counts.requests,
            self.seconds.as_secs_f64(),
            self.server,
            counts.failed,
            millis(counts.longest_gap),
            millis(self.quiet),
        );
        if counts.closed > 0 {
            let _ = writeln!(
                out,
                "{} kept-alive connections were closed just as they were used again; their requests were sent anew, as HTTP has it.",
                counts.closed
            );
        }
        for error in &counts.errors {
            let _ = writeln!(out, "failed: {error}");
        }
        let verdict = match self.is_good() {
            true => "Nothing failed, and the broken release met no request.",
            false => "This is not as it should be.",
        };
        let _ = writeln!(out, "{verdict}");
        out
    }
}

fn millis(duration: Duration) -> f64 {
    round(duration.as_secs_f64() * 1000.0)
}

/// To one decimal.
fn round(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(failed: u64, kept: bool) -> Report {
        let step = |release: &str, refused: Option<&str>, kept| Step {
            release: release.to_owned(),
            took: Duration::from_millis(1234),
            kept,
            refused: refused.map(Into::into),
        };
        let mut counts = Counts::default();
        (counts.requests, counts.failed) = (10, failed);
        let steps = vec![
            step("2", None, false),
            step("broken", kept.then_some("GET / answered 500"), kept),
            step("1", None, false),
        ];
        Report {
            server: "gunicorn 1".into(),
            fallback: None,
            seconds: Duration::from_secs(4),
            quiet: Duration::ZERO,
            counts,
            steps,
        }
    }

    #[test]
    fn good_only_if_nothing_failed_and_the_broken_release_was_kept_off() {
        assert!(report(0, true).is_good());
        assert!(!report(1, true).is_good());
        assert!(!report(0, false).is_good());
        let mut idle = report(0, true);
        idle.counts.requests = 0;
        assert!(!idle.is_good());
    }

    #[test]
    fn one_json_object_with_the_promised_keys() {
        let text = report(0, true).render(true);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["requests"], &value["failed"]), (&10.into(), &0.into()));
        assert_eq!((&value["reloads"], &value["kept_old"]), (&3.into(), &1.into()));
        assert_eq!(value["steps"][0]["took_ms"], 1234.0);
    }
}
