//! What the demo serves with: gunicorn from a virtual environment that is made once and kept in the user's cache, or a
//! server of Python's standard library where that cannot be had.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::show::Show;
use super::site::Site;
use super::{TICK, failure, interruption};
use crate::api::types::{ApiError, ErrorCode};
use crate::cli::args::DemoServer;
use crate::cli::exit::{CliError, Exit};

/// What pip is asked for; it takes the newest that this Python can run.
const REQUIREMENT: &str = "gunicorn>=23";
/// In a virtual environment that is complete: what it was made from.
const STAMP: &str = "airdock-demo.txt";
/// A download that takes longer is given up.
const PREPARE_LIMIT: Duration = Duration::from_secs(240);
const PROGRAM: &str = include_str!("server.py");

pub struct Server {
    python: PathBuf,
    /// Of gunicorn, or why there is none.
    gunicorn: Result<String, String>,
}

impl Server {
    /// Why it is not gunicorn.
    pub fn fallback(&self) -> Option<&str> {
        self.gunicorn.as_ref().err().map(String::as_str)
    }

    pub fn name(&self) -> String {
        match &self.gunicorn {
            Ok(version) => format!("gunicorn {version} (gthread, 2 workers)"),
            Err(_) => "a server of Python's standard library".to_owned(),
        }
    }

    /// What each release needs beside the application.
    pub fn program(&self) -> Option<&'static str> {
        self.gunicorn.is_err().then_some(PROGRAM)
    }

    /// The service's file.
    pub fn configuration(&self, root: &Path, address: SocketAddr) -> String {
        let python = quoted(&self.python);
        let how = match &self.gunicorn {
            Ok(_) => format!(
                "kind = \"gunicorn\"\napp = \"app:application\"\npython = {python}\nworkers = 2\n\
                 args = [\"--worker-class\", \"gthread\", \"--threads\", \"4\"]\n"
            ),
            Err(_) => format!("kind = \"command\"\ncommand = [{python}, \"-B\", \"{{release}}/server.py\"]\n"),
        };
        let ready = match &self.gunicorn {
            Ok(_) => "probe = { path = \"/\" }",
            Err(_) => "notify = true",
        };
        format!(
            "{how}root = {root}\ndirectory = \"{{release}}\"\nautostart = false\n\n\
             [sockets.http]\nlisten = \"{address}\"\n\n[ready]\ntimeout = \"30s\"\n{ready}\n\n\
             [reload]\ndrain = \"10s\"\n\n[stop]\ngrace = \"5s\"\n",
            root = quoted(root)
        )
    }
}

/// TOML takes the escapes of JSON.
fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// Chooses and prepares a server. What hinders gunicorn is told and leads to the fallback, unless gunicorn was asked for.
///
/// # Errors
/// There is no Python, the user interrupted, or gunicorn was asked for and cannot be had.
pub fn prepare(wanted: DemoServer, site: &Site, show: &Show, interrupted: &AtomicBool) -> Result<Server, CliError> {
    let work = Work { site, show, interrupted };
    let print = "import sys; print(sys.executable); print(sys.version.replace(chr(10), ' '))";
    let (python, version) = match work.run(Command::new("python3").args(["-c", print]), "")? {
        Ok(text) if text.lines().count() >= 2 => {
            let mut lines = text.lines().map(str::to_owned);
            (PathBuf::from(lines.next().unwrap_or_default()), lines.next().unwrap_or_default())
        }
        Ok(_) | Err(_) => {
            let error =
                ApiError::new(ErrorCode::Failed, "The demo's application needs Python 3, and there is no python3.")
                    .hint("On Debian: apt install python3-venv");
            return Err(CliError::Said { exit: Exit::Failed, error });
        }
    };
    if wanted == DemoServer::Python {
        return Ok(Server { python, gunicorn: Err("--server python asks for it.".to_owned()) });
    }
    match work.gunicorn(&python, &version)? {
        Ok((python, version)) => Ok(Server { python, gunicorn: Ok(version) }),
        Err(why) if wanted == DemoServer::Gunicorn => Err(failure(why)),
        Err(why) => Ok(Server { python, gunicorn: Err(why) }),
    }
}

/// `$XDG_CACHE_HOME/airdock/demo` or `~/.cache/airdock/demo`.
fn cache() -> Option<PathBuf> {
    Some(crate::fleet::source::cache_directory()?.join("demo"))
}

struct Work<'a> {
    site: &'a Site,
    show: &'a Show,
    interrupted: &'a AtomicBool,
}

impl Work<'_> {
    /// The interpreter and the version of gunicorn, or a sentence: why not.
    fn gunicorn(&self, python: &Path, version: &str) -> Result<Result<(PathBuf, String), String>, CliError> {
        // Without a cache that can be written it lasts as long as the demo.
        let cache = cache().filter(|dir| fs::create_dir_all(dir).is_ok());
        let base = cache.unwrap_or_else(|| self.site.dir().to_path_buf());
        // Two demos at once: the second one waits, and finds it made.
        let lock = File::create(base.join("lock")).and_then(|f| f.lock().map(|()| f));
        let Ok(_lock) = lock else { return Ok(Err(format!("{} cannot be written.", base.display()))) };
        let venv = base.join("gunicorn");
        let inside = venv.join("bin/python");
        let stamp = format!("{REQUIREMENT}\n{}\n{version}\n", python.display());
        if fs::read_to_string(venv.join(STAMP)).is_ok_and(|text| text == stamp)
            && let Some(found) = self.version(&inside)?
        {
            return Ok(Ok((inside, found)));
        }
        self.show.say(&format!("Preparing gunicorn, once, in {} …", venv.display()));
        let _ = fs::remove_dir_all(&venv);
        let args: [&OsStr; 3] = ["-m".as_ref(), "venv".as_ref(), venv.as_ref()];
        if let Err(said) = self.run(Command::new(python).args(args), "python3 -m venv")? {
            return Ok(Err(match said.contains("ensurepip") || said.contains("No module named venv") {
                true => "Python cannot make virtual environments here. On Debian: apt install python3-venv".to_owned(),
                false => format!("a virtual environment cannot be made: {}", last_line(&said)),
            }));
        }
        let mut pip = Command::new(&inside);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1"]);
        pip.args(["--timeout", "10", REQUIREMENT]);
        if let Err(said) = self.run(&mut pip, "pip install gunicorn")? {
            let _ = fs::remove_dir_all(&venv);
            return Ok(Err(format!("pip cannot install it (offline?): {}", last_line(&said))));
        }
        let Some(found) = self.version(&inside)? else {
            return Ok(Err("pip installed it, but it cannot be imported.".to_owned()));
        };
        fs::write(venv.join(STAMP), stamp)
            .map_err(|e| failure(format!("{} cannot be written: {e}.", venv.display())))?;
        Ok(Ok((inside, found)))
    }

    fn version(&self, python: &Path) -> Result<Option<String>, CliError> {
        let print = "import gunicorn; print(gunicorn.__version__)";
        let said = self.run(Command::new(python).args(["-c", print]), "")?;
        Ok(said.ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
    }

    /// Runs a program to its end: its output, or as the inner error all that it said. Ended with all its children by an
    /// interruption.
    fn run(&self, command: &mut Command, what: &str) -> Result<Result<String, String>, CliError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).env("TMPDIR", self.site.dir()).current_dir(self.site.dir());
        // The demo's signal mask is inherited: nothing less would be heard.
        crate::sys::process::end_with_parent(command, Signal::SIGKILL);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
        let give_up = Instant::now() + PREPARE_LIMIT;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Ok(status),
                Ok(None) => {}
                Err(error) => break Err(error.to_string()),
            }
            let interrupted = self.interrupted.load(Ordering::Relaxed);
            if interrupted || Instant::now() > give_up {
                end(&mut child);
                if interrupted {
                    return Err(interruption());
                }
                break Err(format!("it took longer than {PREPARE_LIMIT:?}"));
            }
            if !what.is_empty() {
                self.show.live(|| format!("{what} …"));
            }
            std::thread::sleep(TICK / 4);
        };
        let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        Ok(match status {
            Ok(status) if status.success() => Ok(out),
            Ok(_) => Err(format!("{out}\n{err}")),
            Err(error) => Err(error),
        })
    }
}

fn reader<R: Read + Send + 'static>(stream: Option<R>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stream) = stream {
            // What came before an error is what there is.
            let _: io::Result<usize> = stream.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// It leads a group of its own and is not waited for yet, so that the number is certain.
fn end(child: &mut Child) {
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    let _ = child.wait();
}

fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the demo writes is a configuration without errors, whatever the directory is called.
    #[test]
    fn both_configurations_are_valid() {
        for gunicorn in [Ok("27.0.1".to_owned()), Err("offline".to_owned())] {
            let dir = tempfile::Builder::new().prefix("odd \"name\" \\ {x}").tempdir().unwrap();
            let server = Server { python: "/usr/bin/python3".into(), gunicorn };
            fs::create_dir(dir.path().join("conf.d")).unwrap();
            let text = server.configuration(&dir.path().join("root"), "127.0.0.1:8123".parse().unwrap());
            fs::write(dir.path().join("conf.d/web.toml"), &text).unwrap();
            if let Err(errors) = crate::config::load(dir.path()) {
                panic!("{errors}\n{text}");
            }
        }
    }
}
