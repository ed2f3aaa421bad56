//! Secrets are read by svd itself: files in the pool, commands as checks are run.

use super::{Marks, Secrets, place};
use crate::config::spec::{Secret, SecretFrom, SecretTo, Service};
use crate::core::ServiceId;
use crate::daemon::checks;
use crate::daemon::enclosure;
use crate::daemon::exec::pipe;
use crate::daemon::host::{Host, Message};
use crate::daemon::launch::{self, Surroundings};
use crate::daemon::pool::{Lane, Pool};
use crate::daemon::releases::on_disk;
use crate::daemon::secret;
use crate::daemon::unit::Plan;
use crate::daemon::users::Users;
use crate::kinds::environment::{Login, PATH};
use crate::kinds::{Argv, Places};
use crate::sys::spawn::{Prepared, Source, Wire, c_path, c_string, resolve_program};
use crate::sys::trust::{self, Rule};
use crate::sys::{files, io_text};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};

/// The largest value.
const MOST: usize = 1 << 20;
/// The largest variable with its name (`MAX_ARG_STRLEN`, `execve(2)`).
const MOST_VARIABLE: usize = 128 * 1024;
/// For a command.
const LIMIT: Duration = Duration::from_secs(30);
/// For its end, when its output is at its end.
const LAST: Duration = Duration::from_secs(5);

/// What one secret's value is, or why it is not known.
pub type Value = Result<Vec<u8>, String>;

/// Reads secrets, away from the event loop.
#[derive(Clone)]
pub struct Reader {
    key: secret::Secret,
    around: Surroundings,
    users: Arc<Users>,
    messages: mpsc::Sender<Message>,
    /// Where a disk that hangs is no other service's matter; `None`: for a deploy, which waits for disks anyhow.
    lane: Option<(Pool, ServiceId)>,
}

impl Host {
    pub fn secrets_of(&self, service: ServiceId) -> Reader {
        Reader { lane: Some((self.pool.clone(), service)), ..self.secrets_of_deploy() }
    }

    pub fn secrets_of_deploy(&self) -> Reader {
        Reader {
            key: self.secret.clone(),
            around: self.around.clone(),
            users: Arc::clone(&self.users),
            messages: self.messages.clone(),
            lane: None,
        }
    }
}

impl Reader {
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        match &self.lane {
            Some((pool, service)) => pool.run(Lane::Files(*service), work).await,
            None => on_disk(work).await,
        }
    }

    /// Reads all of a plan, and makes their files.
    ///
    /// # Errors
    /// A sentence for the operator, without any value.
    pub async fn give(&self, mut plan: Plan) -> Result<Plan, String> {
        if plan.spec.secrets.is_empty() {
            return Ok(plan);
        }
        let (mut variables, mut files, mut marks) = (Vec::new(), Vec::new(), Marks::new());
        for (secret, value) in self.values(&plan.spec, &plan.places, |_| true).await {
            let value = value.map_err(|why| unread(secret, &why))?;
            marks.insert(secret.name.clone(), self.mark(secret, &value));
            match secret.to {
                SecretTo::Variable => variables.push((secret.name.to_string(), text(secret, value)?)),
                SecretTo::File => files.push((secret.name.clone(), value)),
            }
        }
        let place = if files.is_empty() {
            None
        } else {
            let (ids, name) = (plan.run_as.ids.clone(), Arc::clone(&plan.spec.name));
            let paths = self.around.paths.clone();
            let made = move || {
                let roots = place::roots(&paths.run, &paths.own_id()?);
                let files: Vec<(&str, &[u8])> = files.iter().map(|(name, value)| (&**name, value.as_slice())).collect();
                place::make(&roots, &name, ids.as_ref(), &files)
            };
            Some(self.run(made).await?)
        };
        plan.secrets = Some(Arc::new(Secrets::new(place, variables, marks)));
        // Where they are is seen by what is shut in.
        let users = Arc::clone(&self.users);
        let enclose = move || {
            let inside = enclosure::inside(&plan)?;
            plan.sandbox = enclosure::sandbox(&plan, &users.walls, inside.as_ref())?.map(Arc::new);
            Ok(plan)
        };
        self.run(enclose).await
    }

    /// Those that are variables, once more.
    ///
    /// # Errors
    /// As of [`Reader::give`].
    pub async fn variables(&self, plan: &Plan) -> Result<Vec<(String, String)>, String> {
        let mut variables = Vec::new();
        for (secret, value) in self.values(&plan.spec, &plan.places, |s| s.to == SecretTo::Variable).await {
            let value = value.map_err(|why| unread(secret, &why))?;
            variables.push((secret.name.to_string(), text(secret, value)?));
        }
        Ok(variables)
    }

    /// Of those that are wanted, in the order of the file.
    pub async fn values<'s>(
        &self,
        spec: &'s Service,
        places: &Places,
        wanted: impl Fn(&Secret) -> bool,
    ) -> Vec<(&'s Secret, Value)> {
        let mut all = Vec::new();
        for secret in spec.secrets.iter().filter(|secret| wanted(secret)) {
            let value = match &secret.from {
                SecretFrom::File(path) => {
                    let path = path.clone();
                    self.run(move || read_file(&path)).await
                }
                SecretFrom::Command(words) => match launch::words_of(spec, places, &self.around, words) {
                    Ok(argv) => self.command(secret, &argv).await.map_err(|why| argv.hide(&why)),
                    Err(why) => Err(why),
                },
            };
            all.push((secret, value.and_then(|value| checked(secret, value))));
        }
        all
    }

    /// By it a later value is compared.
    pub fn mark(&self, secret: &Secret, value: &[u8]) -> u64 {
        self.key.hash_one((&*secret.name, value))
    }

    async fn command(&self, secret: &Secret, argv: &Argv) -> Value {
        let words = argv.words().to_vec();
        let program = self.run(move || find(&words)).await?;
        let failed = |e: std::io::Error| format!("no pipe for its output can be had: {}", io_text(&e));
        let (mut output, theirs) = pipe().map_err(failed)?;
        let arguments = argv.words().iter().map(c_string).collect::<Option<Vec<_>>>();
        let nul = "its command has a NUL byte";
        let mut prepared = Prepared::new(c_path(&program).ok_or(nul)?, arguments.ok_or(nul)?);
        let Login { name, home, shell } = &*self.users.own;
        let variables =
            [("PATH", PATH), ("HOME", home), ("USER", name), ("LOGNAME", name), ("SHELL", shell), ("LANG", "C.UTF-8")];
        let variables = variables.iter().map(|(name, value)| c_string(format!("{name}={value}")));
        prepared.environment = variables.collect::<Option<_>>().ok_or(nul)?;
        prepared.umask = 0o077;
        prepared.limits = vec![self.around.open_files];
        prepared.descriptors = vec![Wire { source: Source::Fd(Arc::new(theirs)), target: 1 }];
        let (done, ended) = oneshot::channel();
        let what = format!("the command of the secret {}", secret.name);
        let message = Message::Command { prepared: Box::new(prepared), what, limit: LIMIT, line: None, done };
        self.messages.send(message).await.map_err(|_| "svd is about to end".to_owned())?;
        let mut value = Vec::new();
        let mut limited = (&mut output).take(MOST as u64 + 1);
        let whole = tokio::time::timeout(LIMIT + LAST, limited.read_to_end(&mut value)).await;
        let too_large = value.len() > MOST;
        // More is not read: the command ends by SIGPIPE.
        drop(output);
        let ended = tokio::time::timeout(LIMIT + LAST, ended).await;
        let ended = ended.unwrap_or_else(|_| Ok(Err("does not end".to_owned())));
        if too_large {
            return Err("its command writes more than 1 MiB".to_owned());
        }
        let advice = format!("run it by hand to see why: {}", argv.shown());
        checks::verdict("its command", ended.unwrap_or_else(|_| Err("svd is about to end".to_owned())))
            .map_err(|why| format!("{why}; {advice}"))?;
        match whole {
            Ok(Ok(_)) => Ok(value),
            Ok(Err(e)) => Err(format!("its command's output: {}", io_text(&e))),
            Err(_) => Err(format!("its command took longer than {} s", LIMIT.as_secs())),
        }
    }
}

/// For people.
pub fn unread(secret: &Secret, why: &str) -> String {
    format!("the secret {} cannot be read: {why}", secret.name)
}

/// What is run as svd must be such that nobody else could change it.
fn find(words: &[String]) -> Result<std::path::PathBuf, String> {
    let name = words.first().ok_or("its command is empty")?;
    let program = resolve_program(name.as_ref(), PATH.as_ref(), Path::new("/")).map_err(|e| e.to_string())?;
    trust::path(&program, Rule::Strict).map_err(|distrust| {
        let help = distrust.help().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("svd does not run its command: {distrust}{help}")
    })?;
    Ok(program)
}

/// A file that is root's, or svd's own user's, and that not everybody can read.
fn read_file(path: &Path) -> Value {
    let said = |e: std::io::Error| format!("{}: {}", path.display(), io_text(&e));
    trust::path(path, Rule::Strict).map_err(|distrust| {
        let help = distrust.help().map(|help| format!(" (`{help}` mends it)")).unwrap_or_default();
        format!("{distrust}{help}")
    })?;
    let real = path.canonicalize().map_err(said)?;
    let file = files::open(&real, files::Access::Read).map_err(said)?;
    let mode = file.metadata().map_err(said)?.mode();
    if mode & 0o007 != 0 {
        let (path, mode) = (real.display(), mode & 0o7777);
        return Err(format!("{path} is open to everybody (mode {mode:04o}): `chmod o= {path}` mends it"));
    }
    let mut value = Vec::new();
    file.take(MOST as u64 + 1).read_to_end(&mut value).map_err(said)?;
    if value.len() > MOST {
        return Err(format!("{} is larger than 1 MiB", real.display()));
    }
    Ok(value)
}

/// A value that can be delivered. A variable's has no line ends behind it.
fn checked(secret: &Secret, mut value: Vec<u8>) -> Value {
    if secret.to == SecretTo::Variable {
        while value.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
            value.pop();
        }
        if value.contains(&0) {
            return Err("it has a NUL byte, which no variable can have; deliver it as = \"file\"".to_owned());
        }
        if secret.name.len() + value.len() + 2 > MOST_VARIABLE {
            return Err("it is larger than 128 KiB, which no variable can be; deliver it as = \"file\"".to_owned());
        }
    }
    // Whoever writes it may be in the midst of it.
    if value.is_empty() { Err("it is empty".to_owned()) } else { Ok(value) }
}

fn text(secret: &Secret, value: Vec<u8>) -> Result<String, String> {
    let wrong = "it is no text in UTF-8; deliver it as = \"file\"";
    String::from_utf8(value).map_err(|_| unread(secret, wrong))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_files_that_are_kept_secret_are_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("key");
        fs::write(&file, "s3cret\n").expect("a file");
        let mode = |mode| fs::set_permissions(&file, Permissions::from_mode(mode)).expect("chmod");
        for open in [0o644, 0o604, 0o666, 0o602] {
            mode(open);
            let why = read_file(&file).expect_err("open to others");
            assert!(why.contains("chmod") && !why.contains("s3cret"), "{why}");
        }
        mode(0o640);
        assert_eq!(read_file(&file), Ok(b"s3cret\n".to_vec()));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("key", &link).expect("a link");
        assert_eq!(read_file(&link), Ok(b"s3cret\n".to_vec()));
        fs::write(&file, vec![b'x'; MOST + 1]).expect("a file");
        assert!(read_file(&file).expect_err("large").contains("larger than 1 MiB"));
        assert!(read_file(dir.path()).is_err() && read_file(Path::new("/dev/zero")).is_err());
        assert!(read_file(&dir.path().join("none")).expect_err("none").contains("No such file"));
    }

    #[test]
    fn values_fit_their_delivery() {
        let secret = |to| Secret { name: "A".into(), from: SecretFrom::Command(Vec::new()), to, every: None };
        let (variable, file) = (secret(SecretTo::Variable), secret(SecretTo::File));
        assert_eq!(checked(&variable, b" a b \r\n\n".to_vec()), Ok(b" a b ".to_vec()));
        assert_eq!(checked(&file, b"a\n\0".to_vec()), Ok(b"a\n\0".to_vec()));
        for wrong in [&b"\n"[..], b"", b"a\0b", &[b'x'; MOST_VARIABLE]] {
            assert!(checked(&variable, wrong.to_vec()).is_err());
        }
        assert!(checked(&file, Vec::new()).is_err());
        let why = text(&variable, b"\xff-s3cret".to_vec()).expect_err("no text");
        assert!(!why.contains("s3cret"), "{why}");
    }
}
