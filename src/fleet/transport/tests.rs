use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::program::{Ended, Program};
use super::ssh::*;
use super::*;
use crate::api::client::Stage;

const PATIENCE: Duration = Duration::from_secs(30);

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("in time") })
}

fn shell(text: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", text]);
    command
}

#[test]
fn a_program_is_spoken_with() {
    run(async {
        let (mut program, mut stream) = Program::start(shell("read a; echo got $a; echo said >&2; exit 3")).unwrap();
        assert!(program.is_running());
        stream.write_all(b"x\n").await.unwrap();
        let mut out = String::new();
        stream.read_to_string(&mut out).await.unwrap();
        let ended = program.end(PATIENCE).await;
        assert_eq!((out.as_str(), ended.code(), ended.said.as_str()), ("got x\n", Some(3), "said"));

        let (program, _stream) = Program::start(shell("exec sleep 1000")).unwrap();
        let ended = program.end(Duration::from_millis(50)).await;
        assert_eq!((ended.status, ended.last_line().as_str()), (None, "it does not answer"));
        // More than is kept does not keep it from its end.
        let (program, _stream) = Program::start(shell("echo first >&2; seq 1 100000 >&2; exit 0")).unwrap();
        let ended = program.end(PATIENCE).await;
        assert!(ended.status.is_some() && ended.said.starts_with("first\n1\n"), "{:?}", ended.status);
        assert!(Program::start(Command::new("/nowhere/x")).is_err());
    });
}

#[test]
fn a_program_that_is_dropped_is_killed() {
    run(async {
        let (program, mut stream) = Program::start(shell("echo here; exec sleep 1000")).unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'h');
        drop(program);
        let begun = Instant::now();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(begun.elapsed() < PATIENCE);
    });
}

#[test]
fn lines_are_waited_for_through_chatter() {
    run(async {
        let told = async |text: &'static [u8]| {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            let wait = tokio::spawn(async move { wait_for_line(&mut ours, "word").await });
            for part in text.chunks(3) {
                theirs.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(theirs);
            wait.await.unwrap()
        };
        assert_eq!(told(b"word\n").await, Ok(()));
        assert_eq!(told(b"Welcome!\r\n\xffword\nword\r\n").await, Ok(()));
        assert_eq!(
            told(b"a word\nwords\nThis account is not available.\n\n").await,
            Err("This account is not available.".to_owned())
        );
        assert_eq!(told(b"word").await, Err("word".to_owned()), "its line has no end");
        assert_eq!(told(b"").await, Err(String::new()));
    });
}

#[test]
fn ends_are_told_apart() {
    let host = Host::named("web-0");
    let ended = |code: i32, said: &str| Ended { status: Some(ExitStatus::from_raw(code << 8)), said: said.to_owned() };
    let told = |code, said| match no_relay(&host, &ended(code, said)) {
        ClientError::Away(away) => (away.stage, away.to_string()),
        other => panic!("{other}"),
    };
    assert_eq!(
        told(255, "x\nConnection to 10.0.0.1 closed."),
        (Stage::Host, "web-0 cannot be reached: Connection to 10.0.0.1 closed.".to_owned())
    );
    assert_eq!(told(127, "sh: 1: svctl: not found").1, "web-0 has no svctl: sh: 1: svctl: not found.");
    assert_eq!(told(2, "error: unrecognized").0, Stage::Svctl);
    let gone = "svctl: svd cannot be reached at /run/svd.sock: there is no such socket.\n  svd is not running.";
    assert_eq!(told(4, gone).1, "web-0: svd cannot be reached at /run/svd.sock: there is no such socket.");
    assert!(no_relay(&host, &ended(4, gone)).is_gone() && no_relay(&host, &ended(4, gone)).is_absence());
    let refused = "motd\nsvctl: You may not connect to svd at /run/svd.sock: permission denied.\n  Use sudo.";
    assert_eq!(
        told(5, refused),
        (Stage::Permission, "web-0: You may not connect to svd at /run/svd.sock: permission denied.".to_owned())
    );
    assert!(came_too_fast(&ended(255, "kex_exchange_identification: read: Connection reset by peer")));
    assert!(!came_too_fast(&ended(255, "Permission denied (publickey).")));
    let rsync = "rsync: change_dir \"/x\" failed: No such file\nrsync error: some files (code 23)";
    assert_eq!(cause(&ended(23, rsync)), "rsync: change_dir \"/x\" failed: No such file");
}

#[test]
fn words_arrive_as_one() {
    for word in ["plain", "/a/b-c_d.e", "a b", "it's", "$(x) `y` \"z\" \\", "", "a\nb", "'", "ü"] {
        let output = shell(&format!("printf %s {}", for_shell(word))).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
    }
    assert_eq!(for_rsync("/a b/it's"), "'/a b/it''s'");
    for (destination, shown) in
        [("web-0", "web-0"), ("a@web-0", "a@web-0"), ("a@fe80::1", "a@[fe80::1]"), ("[::1]", "[::1]")]
    {
        assert_eq!(bracketed(destination), shown);
    }
}

/// What stands where svctl looks for ssh and rsync would have to be a fake: options are looked at here, and ssh is used in `tests/fleet`.
#[test]
fn ssh_asks_nothing_and_takes_no_name_for_an_option() {
    let ssh =
        Ssh::new(Settings { config: Some("/etc/x y".into()), connect_timeout: Duration::from_secs(7), parallel: 0 });
    let host =
        Host { user: Some("deploy".into()), port: Some(2222), ssh: Some("10.0.0.1".into()), ..Host::named("web-0") };
    let command = ssh.command(&host, Path::new("/tmp/100%/0"), true);
    let words: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    assert!(words.ends_with(&[
        "-l".into(),
        "deploy".into(),
        "-p".into(),
        "2222".into(),
        "--".into(),
        "10.0.0.1".into()
    ]));
    assert!(words.starts_with(&["-F".into(), "/etc/x y".into(), "-S".into(), "/tmp/100%%/0".into()]));
    for setting in ["BatchMode=yes", "ConnectTimeout=7", "ControlMaster=yes", "ControlPersist=no"] {
        assert!(words.iter().any(|word| word == setting), "{setting}");
    }
}

#[test]
fn this_machine_needs_no_ssh() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("svd.sock");
    let (local, host) = (Local::new(&socket), Host { local: true, ..Host::named("here") });
    run(async {
        let gone = local.connect(&host).await.err().expect("nobody");
        assert!(gone.is_gone(), "{gone}");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let mut stream = local.connect(&host).await.unwrap_or_else(|e| panic!("{e}"));
        let (mut peer, _) = listener.accept().await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(peer.read_u8().await.unwrap(), b'x');
    });
}

#[test]
fn directories_become_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = |below: &str| dir.path().join(below);
    let write = |below: &str, text: &str| {
        fs::create_dir_all(path(below).parent().unwrap()).unwrap();
        fs::File::create(path(below)).unwrap().write_all(text.as_bytes()).unwrap();
    };
    write("from/a/b", "1");
    write("from/run", "2");
    fs::set_permissions(path("from/run"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("a/b", path("from/link")).unwrap();
    // What is in its place is another kind of thing, or leads out.
    write("outside", "outside");
    write("to/a", "a file");
    fs::create_dir_all(path("to/run/x")).unwrap();
    symlink(path("outside"), path("to/link")).unwrap();
    symlink(dir.path(), path("to/away")).unwrap();
    let local = Local::new(Path::new("/nowhere"));
    let host = Host { local: true, ..Host::named("here") };
    let upload = Upload { from: path("from").into(), to: path("to").display().to_string(), like: Vec::new() };
    run(async {
        local.copy(&host, &upload).await.unwrap();
        assert_eq!(fs::read_to_string(path("to/a/b")).unwrap(), "1");
        assert_eq!(fs::metadata(path("to/run")).unwrap().permissions().mode() & 0o777, 0o750);
        assert_eq!(fs::read_link(path("to/link")).unwrap(), Path::new("a/b"));
        assert_eq!(fs::read_dir(path("to")).unwrap().count(), 3);
        assert_eq!(fs::read_to_string(path("outside")).unwrap(), "outside");
        nix::unistd::mkfifo(&path("from/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = local.copy(&host, &upload).await.unwrap_err().to_string();
        assert!(
            error.contains("could not be copied to here: ") && error.contains("from/pipe: neither a file"),
            "{error}"
        );
        let nowhere = Upload { to: path("none/to").display().to_string(), ..upload.clone() };
        assert!(local.copy(&host, &nowhere).await.is_err());
        let relative = Upload { to: "x/../../y".to_owned(), ..upload.clone() };
        assert!(local.copy(&host, &relative).await.unwrap_err().to_string().contains("no absolute path"));
    });
}
