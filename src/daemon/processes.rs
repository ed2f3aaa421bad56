//! `svctl status NAME --workers`: every process of a service, with what it uses now. Read off the loop, at most so many.

use super::control::unknown;
use super::host::Host;
use super::pool::Lane;
use crate::api::Reply;
use crate::api::request::Name;
use crate::api::types::{ApiError, ErrorCode, GenerationRole, ProcessStatus, ProcessesStatus};
use crate::core::GenerationId;
use crate::sys::process::{self, start_time};
use crate::sys::usage::{Usage, processor_and_threads};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Processes that are looked at; further ones are counted.
const MOST: usize = 512;
/// Between the two looks that tell how much of a processor each one takes.
const WHILE: Duration = Duration::from_millis(300);
/// For each look.
const LIMIT: Duration = Duration::from_secs(10);

impl Host {
    pub fn answer_processes(&self, name: Name, reply: Reply) {
        let Some(service) = self.machine.named(&name).map(|s| s.id) else { return reply.error(unknown(&name)) };
        let (bare, more) = self.one_by_one(&name);
        let (pool, lane) = (self.pool.clone(), Lane::Memory(service));
        tokio::task::spawn_local(async move {
            let pids: Vec<i32> = bare.iter().filter_map(|p| i32::try_from(p.pid).ok()).collect();
            let again = pids.clone();
            let looked = async {
                let look = || "they could not be looked at in time".to_owned();
                let begun = Instant::now();
                let first = tokio::time::timeout(LIMIT, pool.run(lane, move || Ok(times(&pids)))).await;
                let first = first.map_err(|_| look())??;
                tokio::time::sleep(WHILE).await;
                let last = tokio::time::timeout(LIMIT, pool.run(lane, move || Ok(usages(&again)))).await;
                let last = last.map_err(|_| look())??;
                Ok::<_, String>((first, last, begun.elapsed()))
            };
            match looked.await {
                Ok((first, last, passed)) => {
                    let processes = bare.into_iter().filter_map(|p| filled(p, &first, &last, passed)).collect();
                    reply.ok(&ProcessesStatus { service: name, processes, more });
                }
                Err(why) => {
                    reply.error(ApiError::new(ErrorCode::Failed, format!("{name}: its processes: {why}.")));
                }
            }
        });
    }

    /// What svd knows without looking, and how many are left out.
    fn one_by_one(&self, name: &str) -> (Vec<ProcessStatus>, u64) {
        let service = self.machine.named(name).map(|s| s.id);
        let (Some(status), Some(service)) = (self.status(name), service) else { return (Vec::new(), 0) };
        let (mut all, mut more) = (Vec::new(), 0);
        for (number, pids) in self.families(name) {
            let Some(generation) = status.generations.iter().find(|g| g.number == number) else { continue };
            let is_gunicorn = &*status.kind == "gunicorn";
            let numbers = self.numbers_of(GenerationId { service, number });
            for pid in pids.iter().filter(|pid| numbers.is_services(**pid)).filter_map(|pid| u32::try_from(*pid).ok()) {
                if all.len() == MOST {
                    more += 1;
                    continue;
                }
                let counted = generation.gunicorn.iter().find(|w| w.pid == pid);
                let main = generation.workers.iter().find(|w| w.pid == Some(pid));
                let part = match (counted, main) {
                    (Some(_), _) => "worker",
                    (None, Some(_)) if is_gunicorn => "master",
                    (None, Some(_)) => "main",
                    (None, None) => "child",
                };
                all.push(ProcessStatus {
                    pid,
                    part: part.into(),
                    generation: number,
                    role: generation.role,
                    command: Box::default(),
                    memory_bytes: None,
                    cpu_percent: None,
                    open_files: None,
                    threads: 0,
                    requests: counted.and_then(|w| w.requests),
                    errors_5xx: counted.and_then(|w| w.errors_5xx),
                    open: counted.and_then(|w| w.open),
                    since_seconds: 0,
                });
            }
        }
        all.sort_by_key(|p| {
            (p.role != GenerationRole::Committed, p.generation, &*p.part == "child", &*p.part == "worker", p.pid)
        });
        (all, more)
    }
}

fn times(pids: &[i32]) -> BTreeMap<i32, (u64, Duration)> {
    let of = |pid: &i32| Some((*pid, (start_time(*pid)?, processor_and_threads(*pid)?.0)));
    pids.iter().filter_map(of).collect()
}

fn usages(pids: &[i32]) -> BTreeMap<i32, Usage> {
    pids.iter().filter_map(|pid| Some((*pid, Usage::of(*pid)?))).collect()
}

/// One that has ended meanwhile is left out; so is one whose number another process has by now.
fn filled(
    bare: ProcessStatus,
    first: &BTreeMap<i32, (u64, Duration)>,
    last: &BTreeMap<i32, Usage>,
    passed: Duration,
) -> Option<ProcessStatus> {
    let pid = i32::try_from(bare.pid).ok()?;
    let (start_time, before) = first.get(&pid)?;
    let usage = last.get(&pid).filter(|usage| usage.start_time == *start_time)?;
    let used = usage.processor.saturating_sub(*before);
    Some(ProcessStatus {
        command: usage.name.as_str().into(),
        memory_bytes: usage.memory,
        cpu_percent: Some((used.as_secs_f64() / passed.as_secs_f64().max(0.001) * 1000.0).round() / 10.0),
        open_files: usage.open_files,
        threads: usage.threads,
        since_seconds: process::age(*start_time).as_secs(),
        ..bare
    })
}
