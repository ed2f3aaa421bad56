//! The network of a generation's own (`[isolation] network`): one for all its processes, which svd keeps, so that it can connect
//! to their ports and be sent their counts.
//!
//! A network is there as long as anybody has it. It goes with the generation; an svd that goes on after a death gets it back from
//! the guardian, or else from a worker.

use super::adopt::Kept;
use super::host::Host;
use super::state::records::kept;
use super::statsd;
use super::unit::Plan;
use crate::config::spec::Service;
use crate::core::GenerationId;
use crate::sys::io_text;
use crate::sys::limits::{self, Capability};
use crate::sys::process::Identity;
use crate::sys::sandbox::{Namespace, Network};
use crate::sys::socket::Datagrams;

/// One that was made for a generation to be.
pub struct Made {
    pub namespace: Namespace,
    /// The socket for its counts, if it is to send any.
    pub statsd: Option<std::io::Result<Datagrams>>,
}

/// Can svd keep networks? Else each process gets one for itself, or none.
pub fn can_be_kept() -> bool {
    limits::has(Capability::SysAdmin)
}

/// What kind is to be made for the generation, if any.
pub fn wanted(plan: &Plan) -> Option<Network> {
    let kind = plan.sandbox.as_ref().map(|sandbox| sandbox.network).filter(|kind| *kind != Network::Host);
    kind.filter(|_| can_be_kept())
}

/// Makes it. For the pool: the kernel may take a while.
///
/// # Errors
/// A sentence.
pub fn make(kind: Network, spec: &Service) -> Result<Made, String> {
    let namespace = Namespace::new(kind).map_err(|e| format!("cannot make a network of its own: {}", io_text(&e)))?;
    let statsd = spec.counts.statsd.then(|| namespace.within(statsd::socket));
    Ok(Made { namespace, statsd })
}

impl Host {
    /// That of a generation that was taken over. `workers`: those of its processes that still run.
    pub fn take_network(
        &mut self,
        id: GenerationId,
        plan: &Plan,
        kept: &mut Kept,
        mut workers: impl Iterator<Item = Identity>,
    ) -> Option<Namespace> {
        let kind = wanted(plan)?;
        if let Some(fd) = kept.descriptors.remove(kept::shared(id, kept::NETWORK).as_str()) {
            return Some(Namespace::from_fd(fd));
        }
        let mut any = false;
        if let Some(found) = workers.by_ref().inspect(|_| any = true).find_map(Namespace::of) {
            return Some(found);
        }
        if any {
            let text = "the network of its processes is not found: its next workers get another one, and until a reload svd \
                        does not reach the ports of the others";
            self.warn(Some(id.service), text);
        }
        let made = Namespace::new(kind);
        made.map_err(|e| self.warn(Some(id.service), &format!("cannot make a network of its own: {}", io_text(&e))))
            .ok()
    }
}
