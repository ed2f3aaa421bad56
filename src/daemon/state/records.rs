//! The values of the state file. A later svd reads what an earlier one wrote: new members have a default.

use crate::config::spec::{Daemon, Service};
use crate::core::{GenerationId, WorkerId};
use crate::daemon::host::Host;
use crate::daemon::secret::Secret;
use crate::daemon::secrets::{self, Secrets};
use crate::daemon::sockets::Owner;
use crate::daemon::statsd;
use crate::daemon::successor::Main;
use crate::daemon::unit::{Generation, Gunicorn, Plan, Process, RunAs, Unit};
use crate::kinds::Places;
use crate::sys::process::Identity;
use crate::sys::sandbox::Sandbox;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

#[derive(Serialize, Deserialize)]
pub struct Head {
    /// The processes of another boot are gone.
    pub boot: Box<str>,
    pub since: SystemTime,
    pub last_service: u32,
    #[serde(default)]
    pub shutting_down: bool,
    pub daemon: Daemon,
    pub secret: Secret,
    /// Another program is being executed in the place of this one.
    #[serde(default)]
    pub upgrade: Option<Upgrade>,
}

#[derive(Serialize, Deserialize)]
pub struct Upgrade {
    /// The version that ends.
    pub from: Box<str>,
    /// How often svd had died before: once more, and the program could not be executed.
    pub deaths: u32,
}

impl Head {
    pub fn of(host: &Host) -> Head {
        Head {
            boot: host.boot.clone(),
            since: host.since,
            last_service: host.last_service,
            shutting_down: host.machine.is_shutting_down(),
            daemon: host.daemon.clone(),
            secret: host.secret.clone(),
            upgrade: host
                .successor
                .is_some()
                .then(|| Upgrade { from: env!("CARGO_PKG_VERSION").into(), deaths: host.deaths }),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub struct UnitRecord {
    /// The configuration in force, where it is not a value of its own: in format 1.
    #[serde(default, skip_serializing)]
    pub spec: Option<Arc<Service>>,
    pub enabled: bool,
    pub removed: bool,
    pub drained: bool,
    pub scaled: Option<u32>,
    /// The generation whose plan is kept for [`crate::core::Source::Again`].
    pub kept: Option<u64>,
    /// Of its sockets (`SO_COOKIE`), once they are open.
    #[serde(default)]
    pub cookies: Vec<u64>,
}

impl UnitRecord {
    pub fn of(unit: &Unit) -> UnitRecord {
        UnitRecord {
            spec: None,
            enabled: unit.enabled,
            removed: unit.removed,
            drained: unit.drained,
            scaled: unit.scaled,
            kept: unit.kept.as_ref().map(|(number, _)| *number),
            cookies: unit.sockets.iter().filter_map(|fd| crate::sys::socket::cookie(fd).ok()).collect(),
        }
    }
}

/// A [`Plan`].
#[derive(Serialize, Deserialize)]
pub struct PlanRecord<'a> {
    /// `None`: the unit's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spec: Option<Arc<Service>>,
    places: Cow<'a, Places>,
    run_as: Cow<'a, RunAs>,
    owners: Cow<'a, Result<Vec<Owner>, String>>,
    program: Cow<'a, Option<PathBuf>>,
    variables: Cow<'a, [(String, String)]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sandbox: Option<Arc<Sandbox>>,
    /// Never their values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secrets: Option<secrets::Record>,
}

impl PlanRecord<'_> {
    pub fn of<'a>(plan: &'a Plan, unit: Option<&Unit>) -> PlanRecord<'a> {
        let same = unit.is_some_and(|unit| Arc::ptr_eq(&unit.spec, &plan.spec));
        PlanRecord {
            spec: (!same).then(|| Arc::clone(&plan.spec)),
            places: Cow::Borrowed(&plan.places),
            run_as: Cow::Borrowed(&plan.run_as),
            owners: Cow::Borrowed(&plan.owners),
            program: Cow::Borrowed(&plan.program),
            variables: Cow::Borrowed(&plan.variables),
            sandbox: plan.sandbox.clone(),
            secrets: plan.secrets.as_ref().map(|secrets| secrets.record()),
        }
    }

    /// The directory of its secrets.
    pub fn secrets(&self) -> Option<PathBuf> {
        self.secrets.as_ref()?.place().map(Into::into)
    }

    /// The same with what can be told of its secrets by a worker that runs.
    pub fn with_secrets(self, place: Option<PathBuf>) -> PlanRecord<'static>
    where
        Self: 'static,
    {
        PlanRecord { secrets: place.map(secrets::Record::at), ..self }
    }

    /// To be read with the same configuration. `None` cannot happen: all of it can be written.
    pub fn owned(&self) -> Option<PlanRecord<'static>> {
        let text = serde_json::to_string(self).ok()?;
        let owned: PlanRecord<'static> = serde_json::from_str(&text).ok()?;
        Some(PlanRecord { spec: None, ..owned })
    }

    /// `spec`: the unit's.
    pub fn plan(self, spec: &Arc<Service>) -> Plan {
        Plan {
            spec: self.spec.unwrap_or_else(|| Arc::clone(spec)),
            places: self.places.into_owned(),
            run_as: self.run_as.into_owned(),
            owners: self.owners.into_owned(),
            program: self.program.into_owned(),
            variables: self.variables.into_owned(),
            sandbox: self.sandbox,
            secrets: self.secrets.map(|record| Arc::new(Secrets::of_record(record))),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub struct GenerationRecord {
    pub id: GenerationId,
    pub port: Option<u16>,
    pub gunicorn: Option<GunicornRecord>,
    #[serde(default)]
    pub statsd: Option<statsd::Address>,
    #[serde(default = "unknown")]
    pub began: SystemTime,
}

fn unknown() -> SystemTime {
    SystemTime::UNIX_EPOCH
}

impl GenerationRecord {
    pub fn of(generation: &Generation) -> GenerationRecord {
        GenerationRecord {
            id: generation.id,
            port: generation.port,
            gunicorn: generation.gunicorn.as_deref().map(GunicornRecord::of),
            statsd: generation.statsd.as_deref().copied(),
            began: generation.began,
        }
    }
}

/// Gunicorn's own default, in seconds.
const GUNICORN_TIMEOUT: f64 = 30.0;

#[derive(Serialize, Deserialize)]
pub struct GunicornRecord {
    pub committed: bool,
    pub token: Box<str>,
    pub workers: u32,
    pub timeout: f64,
    pub booted: BTreeSet<i32>,
    pub ready: BTreeSet<i32>,
    pub target: Option<u32>,
}

impl GunicornRecord {
    fn of(gunicorn: &Gunicorn) -> GunicornRecord {
        GunicornRecord {
            committed: gunicorn.committed,
            token: gunicorn.token.clone(),
            workers: gunicorn.workers,
            timeout: gunicorn.timeout,
            booted: gunicorn.booted.clone(),
            ready: gunicorn.ready.clone(),
            // What is half done is brought to its end by the next svd as any scaling is.
            target: gunicorn.target.or_else(|| Some(gunicorn.recycling.as_ref()?.count)),
        }
    }

    /// Of a master that serves, of which nothing else is known.
    pub fn serving() -> GunicornRecord {
        GunicornRecord {
            committed: true,
            token: Box::default(),
            workers: 0,
            timeout: GUNICORN_TIMEOUT,
            booted: BTreeSet::new(),
            ready: BTreeSet::new(),
            target: None,
        }
    }

    /// What is shared is not in the record.
    pub fn restore(&self, gunicorn: &mut Gunicorn) {
        gunicorn.committed = self.committed;
        gunicorn.token.clone_from(&self.token);
        gunicorn.workers = self.workers;
        gunicorn.timeout = self.timeout;
        gunicorn.booted.clone_from(&self.booted);
        gunicorn.ready.clone_from(&self.ready);
        gunicorn.target = self.target;
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessRecord {
    pub generation: GenerationId,
    pub slot: u32,
    /// The name of its control group, or of its stub's socket.
    pub group: Option<Box<str>>,
    /// The process above it, where there are no control groups.
    #[serde(default)]
    pub stub: Option<Identity>,
    /// The process that svd has started, unless it has ended.
    pub started: Option<Identity>,
    /// Named by `MAINPID=`.
    pub named: Option<Identity>,
    /// One was named, and has ended.
    pub named_ended: bool,
    pub status: Option<Box<str>>,
    pub watchdog_every: Option<Duration>,
    /// The signal that told it to stop, if one has.
    #[serde(default)]
    pub signalled: Option<i32>,
}

impl ProcessRecord {
    pub fn of(process: &Process) -> ProcessRecord {
        let started = process.worker.pid().filter(|_| !process.started_ended);
        let started = started.and_then(|pid| {
            let known = process.identity.get().copied().filter(|known| known.pid == pid);
            let identity = known.or_else(|| Identity::of(pid))?;
            // Asked for once: it does not change.
            Some(*process.identity.get_or_init(|| identity))
        });
        let named = match &process.main {
            Main::Named(pidfd) => Identity::of(pidfd.pid()),
            Main::Started | Main::Ended => None,
        };
        ProcessRecord {
            generation: process.generation,
            slot: process.slot,
            group: process.worker.group_name().map(Into::into),
            stub: process.worker.stub(),
            started,
            named,
            named_ended: matches!(process.main, Main::Ended),
            status: process.status.clone(),
            watchdog_every: process.watchdog_every,
            signalled: process.signalled,
        }
    }
}

/// The name under which the guardian keeps a descriptor.
pub mod kept {
    use super::{GenerationId, WorkerId};
    use crate::core::ServiceId;

    pub fn socket(service: ServiceId, number: usize) -> String {
        format!("socket/{}/{number}", service.0)
    }

    /// The network of a generation.
    pub const NETWORK: &str = "network";

    /// `what`: gate, report, their end of it, counters, the socket for counts, or [`NETWORK`].
    pub fn shared(generation: GenerationId, what: &str) -> String {
        format!("{what}/{}.{}", generation.service.0, generation.number)
    }

    /// A worker's pidfd. The kernel tells by it how the worker has ended, also when the guardian was not its parent: an
    /// earlier guardian was, and died.
    pub const END: &str = "end";

    /// `what`: notify, ready, [`END`], or the number of a pipe.
    pub fn of_worker(worker: WorkerId, what: &str) -> String {
        format!("{what}/{}", worker.0)
    }
}
