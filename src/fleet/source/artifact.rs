//! A file that was built elsewhere: known by the SHA-256 of its bytes, put into a release as it is, or unpacked.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::super::run::{self, RunError};
use crate::sys::io_text;

/// For a tarball to be unpacked.
const UNPACK: Duration = Duration::from_secs(15 * 60);
/// Endings of what is unpacked.
const TARBALLS: [&str; 7] = [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".txz", ".tar.zst"];

/// A file and what it has in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    pub path: PathBuf,
    /// SHA-256 in lower-case hexadecimal digits.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// Why an artifact cannot be shipped.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("{} cannot be read: {}.", .path.display(), io_text(.source))]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be written: {}.", .path.display(), io_text(.source))]
    Write { path: PathBuf, source: io::Error },
    #[error("{} has changed since it was looked at: it had the digest {expected}, and has {found}.", .path.display())]
    Changed { path: PathBuf, expected: String, found: String },
    #[error("{} cannot be unpacked: tar {why}.", .path.display())]
    Unpack { path: PathBuf, why: RunError },
}

impl Artifact {
    /// # Errors
    /// [`ArtifactError::Read`].
    pub fn read(path: &Path) -> Result<Artifact, ArtifactError> {
        let (digest, size) = digest(path, &mut io::sink()).map_err(|e| e.read(path))?;
        Ok(Artifact { path: path.to_path_buf(), digest, size })
    }

    /// What a release of it is called: `sha256-` and the first 16 digits.
    pub fn release(&self) -> String {
        format!("sha256-{}", self.digest.get(..16).unwrap_or(&self.digest))
    }

    /// Puts it into a directory, which is empty: a tarball is unpacked, anything else keeps its name.
    ///
    /// # Errors
    /// [`ArtifactError`]; [`ArtifactError::Changed`] where it is not what [`Artifact::read`] has seen.
    pub fn export(&self, into: &Path) -> Result<(), ArtifactError> {
        let name = self.path.file_name().unwrap_or_default();
        let copy = into.join(name);
        let write = |source| ArtifactError::Write { path: copy.clone(), source };
        let mut file = File::options().write(true).create_new(true).open(&copy).map_err(write)?;
        let (found, _) = digest(&self.path, &mut file).map_err(|error| match error {
            DigestError::Read(source) => ArtifactError::Read { path: self.path.clone(), source },
            DigestError::Write(source) => write(source),
        })?;
        if found != self.digest {
            return Err(ArtifactError::Changed { path: self.path.clone(), expected: self.digest.clone(), found });
        }
        let shown = name.to_string_lossy();
        if !TARBALLS.iter().any(|end| shown.ends_with(end)) {
            return Ok(());
        }
        unpack(&copy, into).map_err(|why| ArtifactError::Unpack { path: self.path.clone(), why })?;
        fs::remove_file(&copy).map_err(write)
    }
}

/// Unpacks a tarball with the system's `tar`, which strips `/` from the beginning of names and refuses `..`.
pub(super) fn unpack(tarball: &Path, into: &Path) -> Result<(), RunError> {
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--no-same-permissions", "--file"]).arg(tarball);
    tar.arg("--directory").arg(into).env("LC_ALL", "C");
    run::output(tar, UNPACK, 64 * 1024).map(drop)
}

enum DigestError {
    Read(io::Error),
    Write(io::Error),
}

impl DigestError {
    fn read(self, path: &Path) -> ArtifactError {
        match self {
            DigestError::Read(source) | DigestError::Write(source) => {
                ArtifactError::Read { path: path.to_path_buf(), source }
            }
        }
    }
}

/// Of the file's bytes, which go to `copy` as well; and their number.
fn digest(path: &Path, copy: &mut impl io::Write) -> Result<(String, u64), DigestError> {
    let mut file = File::open(path).map_err(DigestError::Read)?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(DigestError::Read(error)),
        };
        hash.update(&buffer[..read]);
        size += read as u64;
        copy.write_all(&buffer[..read]).map_err(DigestError::Write)?;
    }
    Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), size))
}
