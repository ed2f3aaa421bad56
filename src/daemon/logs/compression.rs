//! Which file is compressed next, and what becomes of the result: the log thread's part of it, as only it gives names.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::compress;
use super::engine::Engine;
use super::handle::{Command, LogEvent};
use super::names::Stream;
use super::rotate;
use crate::sys::files::{self, Access};

/// Stack of the compressing thread: zlib's state is on the heap.
const STACK: usize = 512 * 1024;

/// The one compression that may run.
pub(super) struct Compression {
    of: (u32, Stream),
    cancel: Arc<AtomicBool>,
    join: JoinHandle<()>,
}

impl Engine {
    /// Starts the next compression if none runs.
    pub(super) fn compress_next(&mut self) {
        while self.compression.is_none()
            && let Some(of) = self.to_compress.pop_first()
        {
            if let Some(job) = self.job(of) {
                self.start_compression(of, job);
            }
        }
    }

    fn job(&mut self, (slot, stream): (u32, Stream)) -> Option<compress::Job> {
        let log_dir = self.log_dir.clone();
        let service = self.service(slot)?;
        if !service.limits.compress {
            return None;
        }
        let names = service.sinks[stream.number()].as_ref()?.names(&service.dir(&log_dir));
        let number = rotate::next_to_compress(&names, service.limits.keep).ok()??;
        let file = files::open(&names.numbered(number, false), Access::Read).ok()?;
        let inode = file.metadata().ok()?.ino();
        Some(compress::Job { names, file, inode, cancel: Arc::new(AtomicBool::new(false)) })
    }

    fn start_compression(&mut self, of: (u32, Stream), job: compress::Job) {
        let (shared, lower, cancel) = (self.shared.clone(), self.lower_priority, job.cancel.clone());
        let thread = std::thread::Builder::new().name("svd-compress".into()).stack_size(STACK).spawn(move || {
            if let Some(lower) = lower {
                lower();
            }
            let result = compress::run(job);
            // An ended log thread has nobody to tell; the next start tidies up.
            let _ = shared.push(Command::Compressed(result), usize::MAX);
        });
        // Without a thread the file stays plain; the next rotation tries again.
        if let Ok(join) = thread {
            self.compression = Some(Compression { of, cancel, join });
        }
    }

    pub(super) fn compressed(&mut self, result: io::Result<compress::Done>) {
        let Some(Compression { of, join, .. }) = self.compression.take() else {
            return;
        };
        let _ = join.join();
        let log_dir = self.log_dir.clone();
        let Some(service) = self.service(of.0) else {
            return;
        };
        let (name, keep, dir) = (service.name.clone(), service.limits.keep, service.dir(&log_dir));
        let Some(sink) = &service.sinks[of.1.number()] else {
            return;
        };
        let names = sink.names(&dir);
        let adopted = result.and_then(|d| rotate::adopt_compressed(&names, &d.temporary, d.source, keep));
        match adopted {
            // There may be more of this file's; a failed one waits for the next rotation.
            Ok(_) => {
                self.to_compress.insert(of);
            }
            Err(e) => (self.notify)(LogEvent::Trouble {
                service: (&*name).into(),
                text: format!(
                    "{name}: cannot compress a rotated log in {}: {e}; it stays as it is until the next rotation",
                    dir.display()
                ),
            }),
        }
    }

    /// Ends a compression that runs; it removes what it has written.
    pub(super) fn cancel_compression(&mut self) {
        if let Some(compression) = self.compression.take() {
            compression.cancel.store(true, Ordering::Relaxed);
            let _ = compression.join.join();
        }
    }
}
