//! `svctl logs`: reading the files of a service, and following them.

use super::control::unknown;
use super::host::Host;
use super::launch;
use super::logs::{Follow, LogReader, Start, Stream, Wake};
use super::pool::{Lane, Pool};
use crate::api::request::LogsRequest;
use crate::api::types::{ApiError, ErrorCode, LogPosition};
use crate::api::{ByteStream, Reply};
use bytes::Bytes;
use std::sync::Arc;

/// Lines that are shown where nobody says how many.
const LINES: u64 = 10;
const BLOCK: usize = 32 * 1024;

impl Host {
    pub fn answer_logs(&self, request: LogsRequest, reply: Reply) {
        let found = self.machine.named(&request.name).and_then(|s| Some((s.id, self.units.get(&s.id)?)));
        let Some((service, unit)) = found else { return reply.error(unknown(&request.name)) };
        let name = &unit.spec.name;
        if !unit.spec.logs.capture {
            let why = format!("The output of {name} is not kept ([logs] capture = false).");
            return reply.error(ApiError::new(ErrorCode::BadRequest, why));
        }
        let joined = launch::joined(&unit.spec);
        if joined && request.stderr {
            let why = format!("The stderr of {name} is in one file with its stdout.");
            let hint = "Leave --stderr out, or set [logs] stderr = \"apart\" in its file.";
            return reply.error(ApiError::new(ErrorCode::BadRequest, why).hint(hint));
        }
        let stream = match (joined, request.stderr) {
            (true, _) => Stream::Joined,
            (false, true) => Stream::Stderr,
            (false, false) => Stream::Stdout,
        };
        let subscription = if request.follow { self.logs.subscribe(Arc::clone(&unit.name), stream).ok() } else { None };
        let dir = self.around.paths.log.join(&**name);
        let start = match (request.from, request.since, request.lines) {
            (Some(LogPosition { file, offset }), ..) => Start::At { sequence: file, offset },
            (None, Some(since), None) => Start::Since(since),
            (None, Some(since), Some(lines)) => Start::LinesSince(lines, since),
            (None, None, lines) => Start::Lines(lines.unwrap_or(LINES)),
        };
        let log = Log { pool: self.pool.clone(), lane: Lane::Log(service) };
        tokio::task::spawn_local(async move {
            let open = move || LogReader::open(&dir, stream, start).map_err(|e| crate::sys::io_text(&e));
            let reader = match log.pool.run(log.lane, open).await {
                Ok(reader) => reader,
                Err(why) => {
                    return reply.error(ApiError::new(ErrorCode::Failed, format!("The log cannot be read: {why}.")));
                }
            };
            let position = reader.position().map(|(file, offset)| LogPosition { file, offset });
            let out = reply.stream(position);
            match subscription {
                Some(subscription) => follow(&log, Follow::new(subscription, reader), &out).await,
                None => copy(&log, reader.to_the_end_only(), &out).await,
            }
        });
    }
}

/// Where a service's log is read.
struct Log {
    pool: Pool,
    lane: Lane,
}

impl Log {
    /// Reads one block; `None` when the log cannot be read. An empty block: there is nothing more now.
    async fn block<R: Send + 'static>(
        &self,
        mut reader: R,
        read: fn(&mut R, &mut [u8]) -> std::io::Result<usize>,
    ) -> Option<(R, Bytes)> {
        let step = move || {
            let mut buffer = vec![0_u8; BLOCK];
            let n = read(&mut reader, &mut buffer).map_err(|e| crate::sys::io_text(&e))?;
            buffer.truncate(n);
            Ok((reader, Bytes::from(buffer)))
        };
        self.pool.run(self.lane, step).await.ok()
    }
}

async fn copy(log: &Log, mut reader: LogReader, out: &ByteStream) {
    while let Some((back, bytes)) = log.block(reader, LogReader::read).await {
        reader = back;
        if bytes.is_empty() || out.send(bytes).await.is_err() {
            return;
        }
    }
}

async fn follow(log: &Log, mut reader: Follow, out: &ByteStream) {
    while let Some((back, bytes)) = log.block(reader, Follow::read).await {
        reader = back;
        if !bytes.is_empty() {
            if out.send(bytes).await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            wake = reader.changed() => if wake == Wake::Closed { return },
            () = out.closed() => return,
        }
    }
}
