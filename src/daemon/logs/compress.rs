//! Compression of rotated files: one at a time, in a thread of its own that exists only meanwhile. It reads a descriptor
//! and writes a temporary file; giving names stays with the log thread. A death in between leaves a temporary file that
//! the next start removes, and the plain file.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::index;
use super::names::Names;
use crate::sys::files;

/// Read and compressed at once; between two of them the thread looks whether it shall stop.
const BLOCK: usize = 64 * 1024;

/// Logs shrink to a tenth at the fast end already; more effort costs processor time that services could use.
const LEVEL: u32 = 4;

pub(super) struct Job {
    pub names: Names,
    /// Opened by the log thread, so that it is this file whatever its name is by now.
    pub file: File,
    pub inode: u64,
    pub cancel: Arc<AtomicBool>,
}

/// A finished temporary file and the inode of what it replaces.
#[derive(Debug)]
pub(super) struct Done {
    pub temporary: PathBuf,
    pub source: u64,
}

/// Compresses; an interrupted or failed job leaves no temporary file.
pub(super) fn run(mut job: Job) -> io::Result<Done> {
    let meta = job.file.metadata()?;
    let times = index::load(&job.names.index(job.inode), index::guard(&meta), Some(meta.size()));
    // Named after the inode where there is no sequence number: unique among the files that are there.
    let key = times.as_ref().map_or(job.inode, |t| t.sequence);
    let temporary = job.names.temporary(key);
    let out = files::create_anew(&temporary, 0o640)?;
    let meta = out.metadata()?;
    let index = job.names.index(meta.ino());
    let result = compress(&mut job.file, out, &job.cancel).and_then(|()| match &times {
        Some(times) => index::copy(&index, times, index::guard(&meta)),
        None => Ok(()),
    });
    if let Err(e) = result {
        let _ = fs::remove_file(&index);
        let _ = fs::remove_file(&temporary);
        return Err(e);
    }
    Ok(Done { temporary, source: job.inode })
}

fn compress(from: &mut File, out: File, cancel: &AtomicBool) -> io::Result<()> {
    let mut gz = GzEncoder::new(out, Compression::new(LEVEL));
    let mut block = vec![0u8; BLOCK];
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match from.read(&mut block) {
            Ok(0) => break,
            Ok(n) => gz.write_all(&block[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    // On the disk before the plain file goes: a power cut must not take both.
    gz.finish()?.sync_all()
}
