//! What a rollout's hooks are told, and when.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::context::Context;
use super::super::exit::{CliError, Exit};
use super::target::Target;
use crate::api::types::{ApiError, ErrorCode, rfc3339};
use crate::config::counted;
use crate::fleet::drive::Said;
use crate::fleet::hooks::{Message, Teller};
use crate::fleet::inventory::Occasion;
use crate::fleet::rollout::journal::What;
use crate::fleet::rollout::plan::Purpose;
use crate::fleet::rollout::{End, Outcome, Plan, Report};

pub struct News {
    teller: Teller,
    plan: Plan,
    /// Entries of the journal with numbers up to this one were written by others, who have told of them.
    known: u64,
    by: Box<str>,
}

/// The first line: what a hook says is one sentence.
fn first(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

impl News {
    /// Of a rollout that goes on.
    pub fn resume(context: &Context, target: &Target, plan: &Plan, known: u64) -> News {
        let context = context.clone();
        let base = std::path::absolute(&target.base).unwrap_or_else(|_| target.base.clone());
        let teller = Teller::new(&target.app.hooks, &base, move |why| context.say(&why));
        News { teller, plan: plan.clone(), known, by: super::by() }
    }

    /// Of one that is about to begin.
    ///
    /// # Errors
    /// The command for `start` forbids it. A rollback asks nobody.
    pub fn begin(context: &Context, target: &Target, plan: &Plan, known: u64) -> Result<News, CliError> {
        let news = News::resume(context, target, plan, known);
        let (app, release, hosts) = (&plan.app, &plan.release, counted(plan.waves.hosts().count(), "host"));
        let by = &news.by;
        if plan.purpose == Purpose::Rollback {
            news.tell(Occasion::Rollback, format!("{by} takes {app} back to {release} on {hosts}"), None, None);
            return Ok(news);
        }
        let text = match plan.purpose {
            Purpose::CatchUp => format!("{by} brings {hosts} of {app} to {release}"),
            _ => format!("{by} deploys {release} of {app} to {hosts}"),
        };
        let message = news.message(Occasion::Start, text, None, None);
        if let Err(why) = news.teller.start(message) {
            let message = format!("The hook for start forbids it: {why}. Nothing was done.");
            let error = ApiError::new(ErrorCode::Failed, message)
                .hint(format!("[app.{app}.hooks] start in the fleet file names it."));
            return Err(CliError::Said { exit: Exit::Failed, error });
        }
        Ok(news)
    }

    fn message(&self, event: Occasion, text: String, wave: Option<usize>, cause: Option<&str>) -> Message {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Message {
            event,
            text,
            app: self.plan.app.clone(),
            release: self.plan.release.clone(),
            rollout: self.plan.rollout.clone(),
            purpose: self.plan.purpose,
            by: self.by.clone(),
            at: rfc3339(UNIX_EPOCH + Duration::from_secs(unix.as_secs())),
            hosts: self.plan.hosts.iter().map(|host| host.name.clone()).collect(),
            wave,
            cause: cause.map(Into::into),
        }
    }

    fn tell(&self, event: Occasion, text: String, wave: Option<usize>, cause: Option<&str>) {
        // Too many wait: whoever is told so slowly has enough to read.
        let _ = self.teller.tell(self.message(event, text, wave, cause));
    }

    /// What is needed before a rollout begins is there, or there will be none.
    ///
    /// # Errors
    /// The same, after it has been told.
    pub fn unless_failed<T>(self, needed: Result<T, CliError>) -> Result<(T, News), CliError> {
        match needed {
            Ok(needed) => Ok((needed, self)),
            Err(error) => {
                if let CliError::Said { error, .. } = &error {
                    self.end(Some(&End::Refused(error.message.clone())));
                }
                Err(error)
            }
        }
    }

    pub fn said(&self, said: &Said) {
        let Said::Report(Report::Recorded(entry)) = said else { return };
        if entry.number <= self.known {
            return;
        }
        let (app, release) = (&self.plan.app, &self.plan.release);
        match &entry.what {
            What::Begun { wave } if self.plan.purpose.is_judged() => {
                let text = format!("wave {} of {release} of {app}: {}", wave + 1, self.plan.wave(*wave).join(", "));
                self.tell(Occasion::Wave, text, Some(wave + 1), None);
            }
            What::Paused { why } => {
                let text = format!("{app} waits for a decision: {}", first(why));
                self.tell(Occasion::Paused, text, None, Some(why));
            }
            What::Failing { cause, .. } => {
                let text = format!("{release} of {app} is taken back: {}", first(cause));
                self.tell(Occasion::Rollback, text, None, Some(cause));
            }
            _ => {}
        }
    }

    /// Tells how it ended, and waits until everybody has been told. `None`: svctl was interrupted.
    pub fn end(self, end: Option<&End>) {
        let (app, release) = (&self.plan.app, &self.plan.release);
        let cause: Box<str> = match end {
            Some(End::Over { outcome: Outcome::Done { .. }, .. }) => {
                let text = match self.plan.purpose {
                    Purpose::Deploy => format!("{release} of {app} is deployed"),
                    Purpose::Rollback => format!("{app} is rolled back to {release}"),
                    Purpose::CatchUp => format!("{app} has caught up with {release}"),
                };
                self.tell(Occasion::Success, text, None, None);
                return self.teller.end();
            }
            Some(End::Paused { .. }) => return self.teller.end(),
            Some(End::Over { outcome: Outcome::TakenBack { cause } | Outcome::Failed { cause }, .. }) => cause.clone(),
            Some(End::Locked(why) | End::Lost(why) | End::Refused(why)) => why.clone(),
            Some(End::Superseded) => "somebody else goes on with it".into(),
            None => "svctl was interrupted; the hosts hold what they have for their lease".into(),
        };
        let text = format!("{release} of {app} is not deployed: {}", first(&cause));
        self.tell(Occasion::Failure, text, None, Some(&cause));
        self.teller.end();
    }
}
