//! The scripts, and what goes with them on their standard input.

use std::fmt::Write;

use super::super::transport::ssh::for_shell as quoted;
use super::{CONFIGURATION, Change, MAIN, SETTINGS, SVCTL, SVD, Wanted, sha256};

const HEAD: &str = "set -eu\numask 022\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PATH\n\
                    fail() { printf 'svctl: %s\\n' \"$*\" >&2; exit 1; }\n";

/// `put MODE SIZE SHA256 PATH`: so many bytes of standard input become a file, whole or not at all.
const PUT: &str = r#"put() {
    rm -f "$4.airdock-new"
    head -c "$2" >"$4.airdock-new" || fail "$4 cannot be written"
    [ "$(sha256sum <"$4.airdock-new" | cut -d' ' -f1)" = "$3" ] || fail "$4 has not arrived whole"
    chmod "$1" "$4.airdock-new"
}
put_in_place() { mv -f "$1.airdock-new" "$1"; }
"#;

/// `$conf`: where svd's configuration is. The settings are read as systemd reads them, without a shell.
fn configuration() -> String {
    format!(
        "conf=\n\
         [ ! -r {SETTINGS} ] || conf=$(sed -n 's/^[[:space:]]*CONFIG_DIR=//p' {SETTINGS} | tail -n 1 | sed \"s/[[:space:]]*$//; s/^[\\\"']//; s/[\\\"']$//\")\n\
         conf=${{conf:-{CONFIGURATION}}}\n\
         case $conf in /*) ;; *) fail \"CONFIG_DIR in {SETTINGS} must be a path from the root, and it is $conf\" ;; esac\n\
         conf=${{conf%/}}\n"
    )
}

/// svd's own files for init, as they are in the repository.
const INIT: [(&str, &str); 6] = [
    ("install", include_str!("../../../init/install")),
    ("default", include_str!("../../../init/default")),
    ("systemd/svd.service", include_str!("../../../init/systemd/svd.service")),
    ("systemd/service.in", include_str!("../../../init/systemd/service.in")),
    ("sysv/svd", include_str!("../../../init/sysv/svd")),
    ("sysv/service", include_str!("../../../init/sysv/service")),
];

/// A script, and what it reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    pub script: String,
    pub input: Vec<u8>,
}

/// A command for any login shell that runs a script as root, or says that it cannot.
pub fn as_root(script: &str) -> String {
    let script = quoted(script);
    let inner = format!(
        "if [ \"$(id -u)\" = 0 ]; then exec sh -c {script}; fi\n\
         command -v sudo >/dev/null || {{ echo 'svctl: this needs root, or sudo without a password' >&2; exit 77; }}\n\
         sudo -n true 2>/dev/null || {{ echo 'svctl: this needs root, or sudo without a password' >&2; exit 77; }}\n\
         exec sudo -n sh -c {script}"
    );
    format!("exec sh -c {}", quoted(&inner))
}

/// Changes nothing, and prints what [`super::Found::parse`] reads.
pub fn probe(wanted: &Wanted) -> String {
    let mut out = HEAD.to_owned();
    out.push_str(
        "printf 'system\\t%s\\n' \"$(uname -s) $(uname -m)\"\n\
         sum() { sha256sum <\"$1\" | cut -d' ' -f1; }\n\
         if svd=$(command -v svd); then printf 'svd\\t%s\\t%s\\n' \"$(sum \"$svd\")\" \"$svd\"; fi\n\
         if [ -d /run/systemd/system ]; then printf 'init\\tsystemd\\n'; else printf 'init\\tsysv\\n'; fi\n\
         for unit in /etc/init.d/svd /etc/systemd/system/svd.service /lib/systemd/system/svd.service \
         /usr/lib/systemd/system/svd.service; do\n    [ ! -e \"$unit\" ] || { printf 'has-init\\n'; break; }\ndone\n",
    );
    let socket = quoted(&wanted.socket);
    let _ = writeln!(
        out,
        "if command -v svctl >/dev/null && svctl --socket {socket} status >/dev/null 2>&1; then printf 'running\\n'; fi"
    );
    for name in wanted.users.keys() {
        let _ = writeln!(out, "if id -u {0} >/dev/null 2>&1; then printf 'user\\t%s\\n' {0}; fi", quoted(name));
    }
    out.push_str("if command -v rsync >/dev/null; then printf 'rsync\\n'; fi\n");
    out.push_str(&configuration());
    out.push_str(
        "printf 'configuration\\t%s\\n' \"$conf\"\n\
         for path in \"$conf\" \"$conf/conf.d\"; do [ ! -d \"$path\" ] || printf 'directory\\t%s\\n' \"$path\"; done\n",
    );
    for path in wanted.directories.keys() {
        let _ = writeln!(out, "[ ! -d {0} ] || printf 'directory\\t%s\\n' {0}", quoted(path));
    }
    let main = MAIN.to_owned();
    for name in wanted.files.keys().chain(Some(&main).filter(|main| !wanted.files.contains_key(*main))) {
        let name = quoted(name);
        let _ =
            writeln!(out, "[ ! -f \"$conf\"/{name} ] || printf 'file\\t%s\\t%s\\n' \"$(sum \"$conf\"/{name})\" {name}");
    }
    out
}

/// Makes the changes, and nothing else. `program`: the file that becomes svd.
pub fn apply(changes: &[Change], wanted: &Wanted, program: &[u8]) -> Delivery {
    let mut all = Delivery { script: format!("{HEAD}{PUT}"), input: Vec::new() };
    for change in changes {
        match change {
            Change::Program => all.program(wanted, program),
            Change::User { name, home } => {
                let home = quoted(home.as_deref().unwrap_or("/nonexistent"));
                let name = quoted(name);
                all.line(&format!(
                    "useradd --system --user-group --home-dir {home} --no-create-home --shell /usr/sbin/nologin {name} \
                     || fail {name} 'cannot be made a user'"
                ));
            }
            Change::Directory { path, owner: None } => all.line(&format!("mkdir -p {}", quoted(path))),
            // The group that is the user's own, whatever it is called.
            Change::Directory { path, owner: Some(owner) } => {
                all.line(&format!("mkdir -p {0} && chown {1}: {0}", quoted(path), quoted(owner)));
            }
            Change::File { path, content, replaced } => {
                let to = quoted(path);
                if *replaced {
                    all.line(&format!("cp -p {to} {}", quoted(&format!("{path}.before"))));
                }
                all.put("644", path, content.as_bytes());
                all.line(&format!("put_in_place {to}"));
            }
            Change::Init(_) => {
                all.line("init=$(mktemp -d)\ntrap 'rm -rf \"$init\"' EXIT\nmkdir \"$init/systemd\" \"$init/sysv\"");
                for (name, text) in INIT {
                    all.put_as("755", &format!("\"$init\"/{name}"), text.as_bytes());
                    all.line(&format!("put_in_place \"$init\"/{name}"));
                }
                all.line("\"$init\"/install svd >/dev/null");
            }
            Change::Start(init) if init == "systemd" => {
                all.line("systemctl enable --now svd </dev/null || fail 'svd does not start: journalctl -u svd says why'");
            }
            Change::Start(_) => all.line(
                "if command -v update-rc.d >/dev/null; then update-rc.d svd defaults </dev/null >/dev/null 2>&1 || :; fi\n\
                 /etc/init.d/svd start </dev/null || fail 'svd does not start: svd.log in /var/log/airdock says why'",
            ),
            Change::Update => all.line(&format!("svctl --socket {} update </dev/null >&2", quoted(&wanted.socket))),
        }
        all.line(&format!("printf 'done\\t%s\\n' {}", quoted(&change.to_string())));
    }
    all
}

impl Delivery {
    fn line(&mut self, text: &str) {
        self.script.push_str(text);
        self.script.push('\n');
    }

    fn put(&mut self, mode: &str, path: &str, bytes: &[u8]) {
        self.put_as(mode, &quoted(path), bytes);
    }

    /// `path`: one word for the shell.
    fn put_as(&mut self, mode: &str, path: &str, bytes: &[u8]) {
        self.line(&format!("put {mode} {} {} {path}", bytes.len(), sha256(bytes)));
        self.input.extend_from_slice(bytes);
    }

    /// It is run before it takes its place: it may not fit the host's libraries.
    fn program(&mut self, wanted: &Wanted, program: &[u8]) {
        self.line("mkdir -p /usr/local/sbin /usr/local/bin");
        self.put("755", SVD, program);
        self.line(&format!(
            "said=$({SVD}.airdock-new --version 2>&1 | head -n 1) || :\n\
             case $said in *' '{}) ;; *) rm -f {SVD}.airdock-new; fail \"this svd does not run there: $said\" ;; esac",
            quoted(&wanted.version)
        ));
        self.line(&format!("put_in_place {SVD}\nln -sfn {SVD} {SVCTL}"));
    }
}

/// Prints the SHA-256 of the program that svd is started from.
pub fn program_there() -> String {
    format!(
        "{HEAD}svd=$(command -v svd) || fail 'there is no svd: svctl setup brings it'\nsha256sum <\"$svd\" | cut -d' ' -f1\n"
    )
}

/// Puts another program in its place; the one before is kept beside it.
pub fn replace(sum: &str, version: &str, program: &[u8]) -> Delivery {
    let script = format!(
        "{HEAD}{PUT}svd=$(readlink -f \"$(command -v svd)\") || fail 'there is no svd: svctl setup brings it'\n\
         put 755 {size} {sum} \"$svd\"\n\
         said=$(\"$svd.airdock-new\" --version 2>&1 | head -n 1) || :\n\
         case $said in *' '{version}) ;; *) rm -f \"$svd.airdock-new\"; fail \"this svd does not run there: $said\" ;; esac\n\
         cp -p \"$svd\" \"$svd.before\"\n\
         put_in_place \"$svd\"\n",
        size = program.len(),
        version = quoted(version),
    );
    Delivery { script, input: program.to_vec() }
}

/// Takes a service off a host. `purge`: its logs, too, and its `root`, where that is given.
pub fn remove(name: &str, socket: &str, purge: bool, root: Option<&str>) -> String {
    let (plain, socket) = (quoted(name), quoted(socket));
    let file = format!("\"$conf\"/conf.d/{plain}.toml");
    let mut out = format!("{HEAD}{}told() {{ printf 'done\\t%s\\n' \"$*\"; }}\n", configuration());
    let _ = write!(
        out,
        "command -v svctl >/dev/null || fail 'there is no svctl'\n\
         state=0; svctl --socket {socket} is-active {plain} >/dev/null 2>&1 || state=$?\n\
         if [ $state != 0 ] && [ $state != 3 ] && [ ! -e {file} ]; then told 'there is no such service'; exit 0; fi\n\
         if [ $state = 0 ] || [ $state = 3 ]; then\n\
         \x20   svctl --socket {socket} stop {plain} </dev/null >/dev/null || fail {plain} 'does not stop'\n\
         \x20   told stopped\n\
         fi\n\
         if [ -e {file} ]; then rm -f {file}; told removed {file}; fi\n\
         svctl --socket {socket} update </dev/null >/dev/null || fail 'svd could not read its configuration: svctl check says why'\n\
         for unit in /etc/systemd/system/{plain}.service /etc/init.d/{plain}; do\n\
         \x20   if [ -e \"$unit\" ] && grep -q 'generated by airdock init/install' \"$unit\"; then rm -f \"$unit\"; told removed \"$unit\"; fi\n\
         done\n"
    );
    if purge {
        let logs = format!("/var/log/airdock/{name}");
        for path in [Some(logs.as_str()), root].into_iter().flatten().map(quoted) {
            let _ = writeln!(out, "if [ -e {path} ]; then rm -rf --one-file-system {path}; told removed {path}; fi");
        }
    }
    out
}
