//! A start at boot and a start from a shell are the same: what svd was started with reaches no service.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use std::process::{Command, Stdio};
use support::Svd;

/// All that a process has from where it was started. Of grep itself, as a shell blocks signals while it starts one.
const TELL: &str = "tr '\\0' '\\n' </proc/$$/environ | sort; grep -E '^(Sig(Blk|Ign|Cgt)|Umask|Groups|Cap|NoNewPrivs|Seccomp:|Cpus_allowed:)' /proc/self/status; \
    cat /proc/$$/limits /proc/$$/oom_score_adj /proc/$$/coredump_filter; readlink /proc/$$/cwd; \
    read -r _ _ _ _ group session terminal _ </proc/$$/stat; [ $group = $$ ] && [ $session = $$ ] && echo leads; echo terminal $terminal; \
    echo nice $(cut -d' ' -f 18,19 /proc/$$/stat); cut -d' ' -f 40,41 /proc/$$/stat; for fd in /proc/$$/fd/*; do echo ${fd##*/}; done; ionice -p $$; echo told; exec sleep 1000";

/// A shell that somebody has worked in.
const FULL: &str = "umask 077; ulimit -S -n 512; ulimit -S -c 0; ulimit -S -s 4096; ulimit -S -l 32; trap '' INT QUIT HUP PIPE USR1; cd /usr; \
    exec 7</dev/null 8>/dev/null; exec nice -n 5 env --block-signal=USR2,ALRM \"$@\"";

/// What is svd's own where `[limits]` does not say it: its limits, and its priority.
fn is_from_svd(line: &str) -> bool {
    ["Max stack size", "Max open files", "Max locked memory", "nice "].iter().any(|begin| line.starts_with(begin))
}

fn told(full: bool) -> String {
    let mut svd = Svd::new();
    svd.service("web", &format!("kind = 'command'\ncommand = ['/bin/sh', '-c', '''{TELL}''']\nready.log = 'told'\n"));
    let plain = svd.command();
    let mut command = Command::new(if full { "sh" } else { "env" });
    if full {
        command.args(["-c", FULL, "sh"]);
        for (name, value) in [
            ("LD_PRELOAD", "libnone.so"),
            ("PYTHONPATH", "/opt/python"),
            ("DJANGO_SETTINGS_MODULE", "other.settings"),
            ("LANG", "de_DE.UTF-8"),
            ("LC_ALL", "POSIX"),
            ("TZ", "Asia/Tokyo"),
            ("VIRTUAL_ENV", "/opt/venv"),
            ("JAVA_HOME", "/opt/jdk"),
            ("NOTIFY_SOCKET", "/nonexistent"),
            ("LISTEN_FDS", "1"),
            ("HOME", "/usr"),
            ("SHELL", "/bin/false"),
        ] {
            command.env(name, value);
        }
    } else {
        command.args(["-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]).current_dir("/");
    }
    command.arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null());
    svd.start_with(command);
    svd.wait_state("web", "running");
    let log = svd.ok(&["logs", "web", "-n", "1000"]);
    log.lines().filter(|line| !line.starts_with("-- ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_start_from_a_shell_is_as_one_at_boot() {
    let (boot, shell) = (told(false), told(true));
    assert!(boot.contains("LANG=C.UTF-8") && boot.contains("leads") && boot.contains("Max open files"), "{boot}");
    for variable in ["LD_PRELOAD", "PYTHONPATH", "DJANGO", "TZ=", "VIRTUAL_ENV", "JAVA_HOME", "LC_ALL"] {
        assert!(!shell.contains(variable), "{shell}");
    }
    let alike = |text: &str| text.lines().filter(|line| !is_from_svd(line)).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(alike(&boot), alike(&shell));
}
