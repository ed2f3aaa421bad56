//! A command on another host, with input and with a terminal of its own.

use super::bed::Bed;
use super::support::pty::Pty;
use super::support::{PATIENCE, finish, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::process::Stdio;

#[test]
fn a_command_on_a_host_has_a_terminal_and_input() {
    let Some(bed) = Bed::start(2) else { return };
    let command = bed.svctl_command(&["-H", "web-0", "exec", "web", "--", "python3", "-q"]);
    let mut pty = Pty::start(command, 91, 23);
    let before = pty.settings();
    pty.wait_seen(">>> ");
    pty.type_in(b"import os, time; os.uname().nodename, os.get_terminal_size()\r");
    pty.wait_seen("('web-0', os.terminal_size(columns=91, lines=23))");
    pty.resize(120, 40);
    pty.type_in(b"os.system('stty size')\r");
    pty.wait_seen("40 120");
    pty.type_in(b"print('slee' + 'ping'); time.sleep(1000)\r");
    pty.wait_seen("sleeping");
    pty.type_in(b"\x03");
    pty.wait_seen("KeyboardInterrupt");
    pty.type_in(b"exit(17)\r");
    assert_eq!(pty.wait_end(PATIENCE).code(), Some(17));
    assert_eq!(pty.settings(), before);
    bed.assert_clean();

    let mut command = bed.svctl_command(&["-H", "web-0", "exec", "web", "--", "sh", "-c", "cat; echo no >&2; exit 9"]);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("svctl");
    let many = vec![7_u8; 10 << 20];
    let (mut stdin, input) = (child.stdin.take().expect("a pipe"), many.clone());
    let feeder = std::thread::spawn(move || stdin.write_all(&input).expect("input"));
    let output = finish(child, "svctl exec", PATIENCE);
    feeder.join().expect("no panic");
    assert!(output.stdout == many && output.stderr == b"no\n", "{} bytes came", output.stdout.len());
    assert_eq!(output.status.code(), Some(9));
    bed.assert_clean();

    let (code, _, err) = bed.told(&["-H", "all", "exec", "--tty", "web", "true"]);
    assert!(code == 2 && err.contains("one host"), "{err}");
}

#[test]
fn signals_reach_a_command_on_a_host_and_its_end_follows_the_clients() {
    let Some(bed) = Bed::start(1) else { return };
    let begin = |words: &[&str]| {
        let all = [&["-H", "web-0", "exec"], words].concat();
        let mut command = bed.svctl_command(&all);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().expect("svctl");
        child.stdout.as_mut().expect("a pipe").read_exact(&mut [0; 2]).expect("its first word");
        child
    };
    let child = begin(&["web", "sh", "-c", "echo up; exec sleep 54321"]);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("a signal");
    assert_eq!(finish(child, "svctl exec", PATIENCE).status.code(), Some(130));
    bed.assert_clean();
    for words in [
        &["--tty", "web", "sh", "-c", "echo up; trap '' HUP; sleep 54322; true"][..],
        &["web", "sh", "-c", "echo up; sleep 54322; true"],
    ] {
        let mut child = begin(words);
        assert!(!bed.hosts[0].processes("54322").is_empty());
        child.kill().expect("killing svctl");
        child.wait().expect("its end");
        wait_until("nothing is left there", PATIENCE, || bed.hosts[0].processes("54322").is_empty());
    }
}
