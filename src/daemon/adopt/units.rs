//! Services and generations.

use super::{Kept, retake};
use crate::config::spec::Service;
use crate::core::{GenerationId, ServiceId};
use crate::daemon::host::Host;
use crate::daemon::state::records::{GenerationRecord, GunicornRecord, ProcessRecord, UnitRecord, kept};
use crate::daemon::unit::{Generation, Gunicorn, Plan, Unit};
use crate::daemon::{logs, token};
use crate::kinds::counters;
use crate::sys::poll::Interest;
use crate::sys::process::Identity;
use crate::sys::socket::{Gate, SharedWords};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

impl Host {
    pub(super) fn take_unit<'a>(
        &mut self,
        id: ServiceId,
        spec: Arc<Service>,
        record: UnitRecord,
        plans: &BTreeMap<GenerationId, Rc<Plan>>,
        kept: &mut Kept,
        workers: impl Iterator<Item = &'a ProcessRecord>,
    ) {
        let numbers = 0..spec.sockets.len();
        let sockets: Option<Vec<Arc<OwnedFd>>> =
            numbers.map(|n| kept.descriptors.remove(kept::socket(id, n).as_str()).map(Arc::new)).collect();
        let retaken = || {
            let known = !record.cookies.is_empty() && record.cookies.len() == spec.sockets.len();
            known.then(|| retake::sockets(&record.cookies, workers.flat_map(|worker| self.remaining(worker))))?
        };
        let sockets = sockets.or_else(retaken).unwrap_or_default();
        let plan = record.kept.and_then(|n| Some((n, Rc::clone(plans.get(&GenerationId { service: id, number: n })?))));
        let name = Arc::clone(&spec.name);
        let unit = Unit {
            spec,
            name,
            // All or none: where they are lost, the next start binds them anew.
            sockets,
            enabled: record.enabled,
            drained: record.drained,
            removed: record.removed,
            scaled: record.scaled,
            health: None,
            kept: plan,
            secrets: None,
        };
        self.configure_logs(&unit);
        self.units.insert(id, Box::new(unit));
        self.keep_sockets(id);
    }

    /// One that was not prepared to its end is prepared again. `running`: its workers that are certainly there.
    pub(super) fn take_generation(
        &mut self,
        record: GenerationRecord,
        plan: Rc<Plan>,
        kept: &mut Kept,
        running: &[Identity],
    ) {
        let id = record.id;
        let master = running.first().map(|process| process.pid);
        let known = self.machine.service(id.service).and_then(|s| s.generations.iter().find(|g| g.id == id));
        let Some(prepared) = known.map(|g| g.prepared) else { return };
        if !prepared {
            return;
        }
        let sockets = self.units.get(&id.service).map(|u| u.sockets.clone()).unwrap_or_default();
        let gunicorn = record
            .gunicorn
            .and_then(|record| self.take_gunicorn(id, &record, kept).or_else(|| self.share_anew(id, &record, master)));
        if let (true, Some(unit)) = (plan.spec.logs.capture, self.units.get(&id.service)) {
            let release = plan.places.id.as_deref().map(Into::into);
            let begins = logs::Begins { generation: id.number, release, at: record.began, adopted: true };
            let _ = self.logs.begin_generation(Arc::clone(&unit.name), begins);
        }
        let network = self.take_network(id, &plan, kept, running.iter().copied());
        let made = Generation {
            id,
            plan,
            began: record.began,
            sockets,
            port: record.port,
            gunicorn: gunicorn.map(Box::new),
            network: network.clone(),
            statsd: record.statsd.map(Box::new),
            until_gone: Vec::new(),
        };
        let statsd = made.statsd.as_deref().copied();
        self.generations.insert(id, Box::new(made));
        if let Some(address) = statsd
            && let Err(why) = self.resume_statsd_of(address, &mut kept.descriptors, network.as_ref())
        {
            self.warn(Some(id.service), &format!("is not counted any more: {why}"));
        }
        self.keep_generation(id);
    }

    /// `None`: what it shared with svd is lost, as the guardian was killed as well.
    fn take_gunicorn(&mut self, id: GenerationId, record: &GunicornRecord, kept: &mut Kept) -> Option<Gunicorn> {
        let mut take = |what: &str| kept.descriptors.remove(kept::shared(id, what).as_str());
        let (gate, report, theirs, counters) = (take("gate")?, take("report")?, take("theirs")?, take("counters")?);
        let inherited = [
            ("AIRDOCK_GATE", Arc::new(gate.try_clone().ok()?)),
            ("AIRDOCK_REPORT", Arc::new(theirs)),
            ("AIRDOCK_COUNTERS", Arc::new(counters.try_clone().ok()?)),
        ];
        let counters = SharedWords::from_fd(counters, counters::SIZE_BYTES / 8).ok()?;
        if let Err(e) = self.poll.add(&report, Interest::Read, token::of_generation(id)) {
            self.warn(Some(id.service), &format!("gunicorn's reports cannot be read any more: {}", e.desc()));
        }
        let mut made = Gunicorn::new(Gate::from_fd(gate), report, counters, inherited);
        record.restore(&mut made);
        Some(made)
    }
}
