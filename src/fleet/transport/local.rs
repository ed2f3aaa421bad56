//! This machine: its svd's socket, and files copied.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::super::inventory::Host;
use super::{CopyError, Transport, Under, Upload};
use crate::api::client::{ClientError, Dial, Io, Unix};

/// The svd of this machine.
pub struct Local {
    socket: PathBuf,
}

impl Local {
    /// `socket`: for hosts that name none of their own.
    pub fn new(socket: &Path) -> Local {
        Local { socket: socket.to_path_buf() }
    }
}

impl Transport for Local {
    fn connect<'a>(&'a self, host: &'a Host) -> Under<'a, Result<Box<dyn Io>, ClientError>> {
        let unix = Unix::new(host.socket.as_ref().unwrap_or(&self.socket));
        Box::pin(async move { unix.dial().await })
    }

    fn copy<'a>(&'a self, host: &'a Host, upload: &'a Upload) -> Under<'a, Result<(), CopyError>> {
        Box::pin(async move {
            upload.check(host)?;
            let (from, to) = (upload.from.clone(), PathBuf::from(&upload.to));
            let copied = tokio::task::spawn_blocking(move || mirror(&from, &to)).await;
            let told = |error: io::Error| upload.error(host, crate::sys::io_text(&error));
            copied.unwrap_or_else(|_| Err(io::Error::other("the copying was given up"))).map_err(told)
        })
    }

    fn is_dear(&self, _: &Host) -> bool {
        false
    }
}

/// Makes `to` the same as `from`: directories, files with their permissions, and links as links.
///
/// # Errors
/// Of the file system, with the path; of a device, socket or pipe.
fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    let at = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {}", path.display(), crate::sys::io_text(&error)))
    };
    directory(to).map_err(|e| at(to, e))?;
    for entry in fs::read_dir(to).map_err(|e| at(to, e))? {
        let name = entry.map_err(|e| at(to, e))?.file_name();
        if fs::symlink_metadata(from.join(&name)).is_err() {
            remove(&to.join(&name)).map_err(|e| at(&to.join(&name), e))?;
        }
    }
    for entry in fs::read_dir(from).map_err(|e| at(from, e))? {
        let name = entry.map_err(|e| at(from, e))?.file_name();
        let (source, target) = (from.join(&name), to.join(&name));
        let meta = fs::symlink_metadata(&source).map_err(|e| at(&source, e))?;
        if meta.is_dir() {
            mirror(&source, &target)?;
        } else {
            one(&source, &meta, &target).map_err(|e| at(&source, e))?;
        }
    }
    let mode = fs::metadata(from).map_err(|e| at(from, e))?.permissions().mode() & 0o777;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).map_err(|e| at(to, e))
}

fn directory(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::create_dir(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn one(source: &Path, meta: &Metadata, target: &Path) -> io::Result<()> {
    if !meta.is_file() && !meta.is_symlink() {
        return Err(io::Error::other("neither a file nor a directory nor a link"));
    }
    // Anew: what is there may be a link to somewhere else, or have other names.
    remove(target)?;
    if meta.is_symlink() {
        return symlink(fs::read_link(source)?, target);
    }
    let mode = meta.permissions().mode() & 0o777;
    let mut file = File::options().write(true).create_new(true).mode(mode).open(target)?;
    io::copy(&mut File::open(source)?, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(mode))
}
