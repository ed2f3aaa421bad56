//! Links and other things that a service's user puts where svd writes that service's logs.

use super::support::plain::{needs_root, script};
use super::support::steady::Steady;
use super::support::{PATIENCE, Svd, wait_until};
use super::{Victim, hard_link, link, users_directory};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Says a line whenever there is a file `say`, which it removes.
const SAYS: &str = "cd $0; n=0; while :; do if [ -e say ]; then n=$((n+1)); echo line $n; rm say; fi; sleep 0.01; done";
const LINE: &str = "line ";

/// An svd with a service `web` of the user nobody, who owns its log folder.
struct Planted {
    svd: Svd,
    folder: PathBuf,
    victim: Victim,
}

impl Planted {
    fn new(logs: &str) -> Option<Planted> {
        if needs_root() {
            return None;
        }
        let svd = Svd::new();
        let folder = svd.path("log/web");
        users_directory(&folder);
        users_directory(&svd.path("says"));
        let text = script(SAYS, &format!("user = 'nobody'\n[logs]\n{logs}"));
        let text = text.replace("''']\n", &format!("''', '{}']\n", svd.path("says").display()));
        svd.service("web", &text);
        let victim = Victim::new(&svd);
        Some(Planted { svd, folder, victim })
    }

    fn start(&mut self) {
        self.svd.start();
        self.svd.wait_state("web", "running");
    }

    /// The service writes a line.
    #[track_caller]
    fn say(&self) {
        let say = self.svd.path("says/say");
        fs::write(&say, "").expect("a file");
        wait_until("it is said", PATIENCE, || !say.exists());
    }

    fn current(&self) -> PathBuf {
        self.folder.join("output.log")
    }

    /// Lines in the file that is written now.
    fn lines(&self) -> usize {
        self.svd.output("web").matches(LINE).count()
    }

    #[track_caller]
    fn wait_said(&self, what: &str) {
        wait_until(&format!("svd says: {what}"), PATIENCE, || self.svd.said().contains(what));
    }
}

#[test]
fn a_log_that_is_a_link_to_another_file_is_not_written() {
    type Plant = fn(&Path, &Path);
    let ways: [(Plant, &str); 2] = [(link, "it is a symbolic link"), (hard_link, "it is a hard link")];
    for (plant, why) in ways {
        let Some(mut planted) = Planted::new("") else { return };
        plant(&planted.victim.0, &planted.current());
        planted.victim.is_reached_by_a_naive_write(&planted.current());
        planted.start();
        planted.say();
        planted.wait_said(why);
        planted.victim.assert_unharmed(&planted.svd);
        let said = planted.svd.svctl(&["logs", "web"]);
        assert!(!String::from_utf8_lossy(&said.stdout).contains("secret-of-root"), "svctl logs follows it");
        // The service goes on, and with the link out of the way so does its log, which tells what is missing.
        fs::remove_file(planted.current()).expect("removed");
        wait_until("the log goes on", PATIENCE, || {
            planted.say();
            planted.lines() > 0
        });
        assert!(planted.svd.output("web").contains(why), "{}", planted.svd.output("web"));
        planted.victim.assert_unharmed(&planted.svd);
    }
}

#[test]
fn a_link_to_nothing_makes_no_file() {
    let Some(mut planted) = Planted::new("") else { return };
    let elsewhere = planted.svd.path("made-by-root");
    link(&elsewhere, &planted.current());
    super::naive_write(&planted.current());
    fs::remove_file(&elsewhere).expect("a naive write makes the file");
    planted.start();
    planted.say();
    planted.wait_said("it is a symbolic link");
    assert!(!elsewhere.exists());
}

#[test]
fn a_folder_that_is_a_link_into_a_users_directory_is_not_used() {
    let Some(mut planted) = Planted::new("") else { return };
    let (middle, target) = (planted.svd.path("users"), planted.svd.path("etc/secret.d"));
    fs::create_dir(&target).expect("a directory");
    users_directory(&middle);
    link(&target, &middle.join("logs"));
    fs::remove_dir(&planted.folder).expect("removed");
    std::os::unix::fs::symlink(middle.join("logs"), &planted.folder).expect("the administrator's link");
    super::naive_write(&planted.current());
    fs::remove_file(target.join("output.log")).expect("a naive write makes a file wherever the user wants");
    planted.start();
    planted.say();
    planted.wait_said("who could change it");
    assert_eq!(fs::read_dir(&target).expect("there").count(), 0);
}

/// All names that svd gives to files in the folder, planted before it does.
#[test]
fn rotation_and_compression_write_nowhere_else() {
    let Some(mut planted) = Planted::new("max_size = '4KiB'\nkeep = 3\ncompress = true\n") else { return };
    planted.start();
    planted.say();
    wait_until("the first line", PATIENCE, || planted.lines() == 1);
    // The next index is named after the number of a file that is not there yet: mostly the lowest free one.
    let next = planted.folder.join("next");
    fs::write(&next, "").expect("a file");
    let inode = fs::metadata(&next).expect("there").ino();
    let mut names: Vec<String> = (inode..inode + 40).map(|n| format!(".output.log.{n}.idx")).collect();
    names.extend((0..40).map(|n| format!(".output.log.{n}.tmp")));
    names.extend((1..5).flat_map(|n| [format!("output.log.{n}"), format!("output.log.{n}.gz")]));
    names.push(".output.log.new".to_owned());
    let victim = &planted.victim;
    for name in &names {
        link(&victim.0, &planted.folder.join(name));
    }
    victim.is_reached_by_a_naive_write(&planted.folder.join(".output.log.new"));
    fs::remove_file(&next).expect("removed");
    // Enough for some rotations: lines come from the shell, a file is small.
    planted.svd.service("web", &script(LOUD, "user = 'nobody'\n[logs]\nmax_size = '4KiB'\nkeep = 3\n"));
    planted.svd.ok(&["update"]);
    let whole = |name: &str| fs::symlink_metadata(planted.folder.join(name)).is_ok_and(|m| m.is_file() && m.uid() == 0);
    wait_until("it is rotated and compressed", PATIENCE, || {
        planted.victim.assert_unharmed(&planted.svd);
        whole("output.log.1") && whole("output.log.2.gz") && whole("output.log.3.gz")
    });
    planted.victim.assert_unharmed(&planted.svd);
    let shown = planted.svd.svctl(&["logs", "web", "-n", "100000"]);
    assert!(!String::from_utf8_lossy(&shown.stdout).contains("secret-of-root"));
}

const LOUD: &str = "n=0; while :; do n=$((n+1)); echo line $n ________________________________________________; [ $((n%20)) -gt 0 ] || sleep 0.05; done";

/// What is compressed and shown is the service's own.
#[test]
fn a_rotated_file_that_is_a_link_is_not_read() {
    let Some(mut planted) = Planted::new("max_size = '4KiB'\nkeep = 5\n") else { return };
    planted.start();
    planted.say();
    wait_until("the first line", PATIENCE, || planted.lines() == 1);
    for (plant, name) in [(link as fn(&Path, &Path), "output.log.1"), (hard_link, "output.log.2")] {
        let name = planted.folder.join(name);
        plant(&planted.victim.0, &name);
        assert!(fs::read_to_string(&name).expect("naive").contains("secret-of-root"), "a naive reader shows it");
        let shown = planted.svd.svctl(&["logs", "web", "-n", "100"]);
        let text = String::from_utf8_lossy(&shown.stdout).into_owned() + &String::from_utf8_lossy(&shown.stderr);
        assert!(!text.contains("secret-of-root") && text.contains("link"), "{text}");
        fs::remove_file(&name).expect("removed");
    }
    assert!(planted.svd.ok(&["logs", "web"]).contains(LINE));
}

/// Neither a pipe nor a file under a lease stops the thread that writes everybody's logs.
#[test]
fn what_would_be_waited_for_stops_no_other_log() {
    fn pipe(path: &Path) -> Option<Lease> {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        None
    }
    fn leased(path: &Path) -> Option<Lease> {
        fs::write(path, "").expect("a file");
        std::os::unix::fs::chown(path, Some(super::NOBODY), None).expect("chown");
        Some(Lease::hold(path))
    }
    type Plant = fn(&Path) -> Option<Lease>;
    let ways: [(Plant, &str); 2] = [(pipe, "it is not a regular file"), (leased, "has a lease on it")];
    for (plant, why) in ways {
        let Some(mut planted) = Planted::new("") else { return };
        naive_write_waits(&planted.svd.path(why), plant);
        let _lease = plant(&planted.current());
        planted.svd.service("other", &script("while :; do echo x; sleep 0.01; done", ""));
        let steady = Steady::service(&planted.svd);
        planted.start();
        planted.say();
        planted.wait_said(why);
        let written = || fs::metadata(planted.svd.path("log/other/output.log")).map_or(0, |meta| meta.len());
        for _ in 0..10 {
            let before = written();
            wait_until("another log goes on", PATIENCE / 3, || written() > before);
            planted.say();
        }
        assert!(steady.replaced() < PATIENCE / 3);
        // Whoever looks at what failed must not wait for it either.
        fs::remove_file(planted.current()).expect("removed");
    }
}

#[track_caller]
fn naive_write_waits(path: &Path, plant: fn(&Path) -> Option<Lease>) {
    let held = plant(path);
    let (done, ended) = std::sync::mpsc::channel();
    let at = path.to_owned();
    let naive = std::thread::spawn(move || {
        let file = fs::OpenOptions::new().append(true).open(at);
        let _ = done.send(file.map(drop));
    });
    let waited = ended.recv_timeout(std::time::Duration::from_millis(300));
    assert!(waited.is_err(), "a naive write does not wait: {waited:?}");
    // Lets it go: the lease's holder ends, and the pipe gets a reader.
    drop(held);
    let _reader = fs::OpenOptions::new().read(true).write(true).open(path).expect("opened");
    naive.join().expect("the naive one goes on");
}

/// A process of the file's owner that has a write lease on it and does not give it up.
struct Lease(std::process::Child);

impl Lease {
    fn hold(path: &Path) -> Lease {
        let program = "import fcntl, os, signal, sys, time\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\n\
            fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
            print('held', flush=True)\ntime.sleep(1000)\n";
        let mut command = std::process::Command::new("/usr/bin/python3");
        command.arg("-c").arg(program).arg(path).stdout(std::process::Stdio::piped());
        std::os::unix::process::CommandExt::uid(&mut command, super::NOBODY);
        let mut held = Lease(command.spawn().expect("python"));
        let mut line = String::new();
        let out = held.0.stdout.as_mut().expect("a pipe");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("a line");
        assert_eq!(line.trim(), "held");
        held
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
