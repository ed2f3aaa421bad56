//! `svctl relay`: what svctl on another host runs here over ssh, to speak with this host's svd.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use super::context::Context;
use super::exit::{CliError, Exit};
use crate::api::client::{self, ClientError};
use crate::fleet::transport::ssh::GREETING;

/// Says that it is connected, and passes bytes on in both directions until svd has no more to say.
pub fn relay(context: &Context) -> Result<Exit, CliError> {
    let Some(socket) = context.socket() else { return Ok(Exit::Usage) };
    let local = |source| ClientError::Local { message: "svctl cannot pass on what svd says", source };
    let svd = client::runtime()?.block_on(async { client::connect(socket).await?.into_std().map_err(local) })?;
    svd.set_nonblocking(false).map_err(local)?;
    let mut there = svd.try_clone().map_err(local)?;
    context.print(format!("{GREETING}\n"))?;
    std::thread::spawn(move || {
        let _ = pass_on(&mut io::stdin().lock(), &mut there);
        // svd ends its side when it has answered, or at once where nobody waits for that.
        let _ = there.shutdown(Shutdown::Write);
    });
    match pass_on(&mut &svd, &mut io::stdout().lock()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(local(error).into()),
        _ => Ok(Exit::Ok),
    }
}

/// By reading and writing: `io::copy` would splice(2), which keeps whoever has the other end of our output from reading, as the kernel
/// holds that pipe's lock while it waits for svd; sshd stands still then.
fn pass_on(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                to.write_all(&buffer[..read])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
