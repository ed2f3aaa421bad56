//! An app on the hosts of a bed: a service on each of them, a repository or artifact that it comes from, a fleet file of its own, and
//! a load that counts every answer. Several sites on one bed are deployed at the same time.

use super::bed::{Bed, Host};
use super::support::app::{App, Release};
use super::support::env::Env;
use super::support::load::{Load, Plan, Report};
use super::support::{PATIENCE, http_get, run_limited};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub const GUNICORN: &str = "gunicorn-27.0.1";

/// Longest time that a rollout may take.
const ROLLOUT: Duration = Duration::from_secs(300);

pub struct Site<'a> {
    pub bed: &'a Bed,
    /// Of the app, its service, and the directory of its repository.
    pub name: &'static str,
    port: u16,
    /// svctl's directory for temporary files.
    desk: String,
    /// Where it comes from, in the fleet file.
    from: String,
}

/// A shell command in a directory, which must succeed: its stdout.
#[track_caller]
pub fn shell(dir: &Path, words: &str, argument: &Path) -> String {
    let mut command = Command::new("sh");
    command.current_dir(dir).args(["-euc", words, "sh"]).arg(argument);
    let done = run_limited(command, PATIENCE * 2);
    assert!(done.status.success(), "{words}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// A service file of gunicorn's; `@` begins what a host fills in.
pub fn gunicorn(env: &Env, app: &str, more: &str) -> String {
    format!(
        "kind = 'gunicorn'\napp = '{app}'\nroot = '@ROOT'\npython = '{}'\nworkers = 2\n\
         sockets.http.listen = '@ADDRESS'\nready.probe = {{ path = '/healthz' }}\n\
         args = ['--worker-class', 'gthread', '--threads', '4']\n{more}",
        env.python().display()
    )
}

impl<'a> Site<'a> {
    /// Gunicorn with the plain test application as `web`, whose release `first` serves on all hosts. `more`: of the fleet file.
    pub fn new(bed: &'a Bed, more: &str) -> Option<Site<'a>> {
        Site::plain(bed, "web", 8000, more)
    }

    /// The same under another name.
    pub fn plain(bed: &'a Bed, name: &'static str, port: u16, more: &str) -> Option<Site<'a>> {
        let env = Env::get(GUNICORN)?;
        let site = Site::empty(bed, name, port, &gunicorn(&env, "wsgi_app:application", ""));
        site.commit(&Release::new("first"));
        site.first(more);
        Some(site)
    }

    /// A service without any release, and a repository without a commit.
    pub fn empty(bed: &'a Bed, name: &'static str, port: u16, service: &str) -> Site<'a> {
        let repository = bed.path(name).join("repository");
        fs::create_dir_all(&repository).expect("the repository");
        let words =
            "git init -q -b production && git config user.email tester@example.org && git config user.name Tester";
        shell(&repository, words, Path::new(""));
        let from = format!("repository = {repository:?}\nbranch = \"production\"\n");
        let site = Site { bed, name, port, desk: format!("tmp-{name}"), from };
        site.service(service);
        site
    }

    /// What is shipped is a file.
    pub fn artifact(mut self, file: &Path) -> Site<'a> {
        self.from = format!("artifact = {file:?}\n");
        self
    }

    /// Another place from where somebody deploys the same app.
    pub fn elsewhere(&self) -> Site<'a> {
        Site { desk: format!("{}-elsewhere", self.desk), from: self.from.clone(), ..*self }
    }

    /// Writes the service's file on all hosts.
    pub fn service(&self, text: &str) {
        for host in &self.bed.hosts {
            let root = self.root(host);
            fs::create_dir_all(&root).expect("the root");
            let text = text.replace("@ROOT", &root.display().to_string());
            let text = text.replace("@ADDRESS", &format!("{}:{}", host.address, self.port));
            host.svd.service(self.name, &text);
            // It may have no release yet.
            host.svd.svctl(&["update"]);
        }
    }

    pub fn root(&self, host: &Host) -> PathBuf {
        host.svd.path("srv").join(self.name)
    }

    pub fn repository(&self) -> PathBuf {
        self.bed.path(self.name).join("repository")
    }

    /// The first release, on all hosts at once; then `more` is in the fleet file.
    #[track_caller]
    pub fn first(&self, more: &str) {
        self.fleet("waves = [\"100%\"]\nbake = \"0s\"\n");
        let (code, out, err) = self.deploy();
        assert_eq!(code, 0, "{out}{err}");
        self.fleet(more);
    }

    fn fleet_file(&self) -> PathBuf {
        self.bed.path(&format!("fleet.{}.toml", self.name))
    }

    pub fn fleet(&self, more: &str) {
        // Hosts that are down are not waited for as long as those of a busy machine.
        let timeout = if more.contains("max_unreachable") { "8s" } else { "30s" };
        let app = format!(
            "connect_timeout = {timeout:?}\n[app.{}]\n{}hosts = [\"web-*\"]\nlease = \"60s\"\n{more}",
            self.name, self.from
        );
        // One lease is enough.
        let app = if more.contains("lease = ") { app.replacen("lease = \"60s\"\n", "", 1) } else { app };
        fs::write(self.fleet_file(), self.bed.fleet_text(&app)).expect("writing");
    }

    /// Sets what the next release of the plain application does.
    pub fn commit(&self, release: &Release) {
        let app = App::at(self.bed.path(self.name).join("made"));
        self.commit_files(&app.publish(release));
    }

    /// Everything in the directory becomes part of the next commit.
    pub fn commit_files(&self, from: &Path) {
        let words = "cp -r \"$1\"/. . && git add -A && git commit -q --allow-empty -m 'another release'";
        shell(&self.repository(), words, from);
    }

    /// svctl's directory for temporary files.
    pub fn temporary(&self) -> PathBuf {
        self.bed.path(&self.desk)
    }

    pub fn svctl_command(&self, words: &[&str]) -> Command {
        let mut command = self.bed.svctl_command(&[]);
        fs::create_dir_all(self.temporary()).expect("a directory");
        command.env("TMPDIR", self.temporary()).arg("--fleet").arg(self.fleet_file()).args(words);
        command
    }

    /// Exit code, stdout and stderr of svctl, which leaves nothing behind.
    #[track_caller]
    pub fn told(&self, words: &[&str]) -> (i32, String, String) {
        let begun = Instant::now();
        let Output { status, stdout, stderr } = run_limited(self.svctl_command(words), ROLLOUT);
        println!("svctl {}: {:.1?}, {status}", words.join(" "), begun.elapsed());
        self.bed.assert_clean_in(&self.temporary());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (status.code().unwrap_or(-1), text(&stdout), text(&stderr))
    }

    /// `svctl VERB NAME`.
    #[track_caller]
    pub fn verb(&self, verb: &str) -> (i32, String, String) {
        self.told(&[verb, self.name])
    }

    #[track_caller]
    pub fn deploy(&self) -> (i32, String, String) {
        self.verb("deploy")
    }

    /// Generations are counted: who was never switched has the number that it had.
    pub fn generations(&self) -> Vec<u64> {
        let number = |host: &Host| host.svd.status(self.name)["generation"].as_u64().expect("a number");
        self.bed.hosts.iter().map(number).collect()
    }

    pub fn address(&self, host: &Host) -> SocketAddr {
        format!("{}:{}", host.address, self.port).parse().expect("an address")
    }

    /// What each host answers with, or why it does not.
    pub fn serves(&self) -> Vec<String> {
        self.serves_on(&self.bed.hosts.iter().collect::<Vec<_>>())
    }

    pub fn serves_on(&self, hosts: &[&Host]) -> Vec<String> {
        let serves = Mutex::new(Vec::new());
        self.bed.inside(|| {
            for host in hosts {
                // Who has come back to the network is not found at once.
                let body =
                    http_get(self.address(host), "/").map_or_else(|e| format!("no answer: {e}"), |(_, body)| body);
                let release = body.strip_prefix("release=").and_then(|rest| rest.split(' ').next()).unwrap_or(&body);
                serves.lock().expect("no panic").push(release.to_owned());
            }
        });
        serves.into_inner().expect("no panic")
    }

    /// Loads on all hosts while something is done.
    pub fn under_load<T: Send>(&self, done: impl FnOnce() -> T + Send) -> (T, Vec<Report>) {
        self.under_load_of(&self.bed.hosts.iter().collect::<Vec<_>>(), done)
    }

    pub fn under_load_of<T: Send>(&self, hosts: &[&Host], done: impl FnOnce() -> T + Send) -> (T, Vec<Report>) {
        let result = Mutex::new(None);
        self.bed.inside(|| {
            let load = |host: &Host| {
                // All of them run on the machine that the test runs on.
                let pause = Duration::from_millis(50);
                Plan { new: 1, kept: 1, pause, ..Plan::new(self.address(host)) }.start()
            };
            let loads: Vec<Load> = hosts.iter().map(|host| load(host)).collect();
            loads.iter().for_each(|load| load.more(20));
            let value = done();
            let reports = loads.into_iter().map(Load::stop).collect();
            *result.lock().expect("no panic") = Some((value, reports));
        });
        result.into_inner().expect("no panic").expect("it ran")
    }
}
