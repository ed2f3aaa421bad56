//! What idle services cost. Measured in a process of its own, as other tests would be counted, too.

use super::*;
use std::process::Command;

/// Set in the process that measures.
const CHILD: &str = "AIRDOCK_TEST_LOG_COST";

const SERVICES: usize = 4000;

/// Allocated memory that is in use: the resident anonymous pages of this process, in bytes.
fn anonymous() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Times that the log thread went to sleep.
fn wakeups() -> u64 {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        if std::fs::read_to_string(task.join("comm")).unwrap().trim() == "svd-logs" {
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            let line = status.lines().find(|l| l.starts_with("voluntary_ctxt")).unwrap();
            return line.split_whitespace().nth(1).unwrap().parse().unwrap();
        }
    }
    panic!("no log thread");
}

#[test]
fn idle_services_cost_next_to_nothing() {
    if std::env::var_os(CHILD).is_some() {
        return measure();
    }
    let exe = std::env::current_exe().unwrap();
    let name = "daemon::logs::tests::cost::idle_services_cost_next_to_nothing";
    let out =
        Command::new(exe).args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    eprintln!("{}", text.lines().filter(|l| l.contains("bytes a service")).collect::<String>());
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
}

fn measure() {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let services = SERVICES.min((limit.1 as usize).saturating_sub(100) / 2);
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit.1, limit.1);
    let rig = Rig::new(Logs { max_age: Some(Duration::from_secs(1)), ..logs() });
    let names: Vec<std::sync::Arc<str>> = (0..services).map(|i| format!("service-{i:04}").into()).collect();
    let release: std::sync::Arc<str> = "deploy-2026-11-22_18-40-00".into();
    let mut writers: Vec<OwnedFd> = Vec::with_capacity(services);
    rig.sync();
    let before = anonymous();
    for name in &names {
        rig.handle.configure(name.clone(), Logs { max_age: Some(Duration::from_secs(1)), ..logs() }).unwrap();
        rig.handle.begin_generation(name.clone(), begins(1, Some(release.clone()), SystemTime::now())).unwrap();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let origin = Attach { service: name.clone(), generation: 1, worker: 0, stream: Stream::Joined, adopted: false };
        rig.handle.attach(origin, read).unwrap();
        writers.push(write);
        rig.sync();
    }
    let each = anonymous().saturating_sub(before) / services;
    println!("{each} bytes a service, of {services}");
    assert!(each <= 500, "{each} bytes a service");
    // Nor does one whose file could not be written for a while keep the thread awake after that.
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    rig.handle.configure(NAME.into(), logs()).unwrap();
    let blocked = rig.dir().join("output.log");
    std::fs::create_dir_all(&blocked).unwrap();
    pipe.write_all(b"lost\n").unwrap();
    rig.event(|e| matches!(e, LogEvent::Failing { .. }).then_some(()));
    std::fs::remove_dir(&blocked).unwrap();
    rig.event(|e| matches!(e, LogEvent::Recovered { .. }).then_some(()));
    // Asleep: the last answer may be here before that.
    let mut slept = 0;
    assert!(until(|| {
        let before = std::mem::replace(&mut slept, wakeups());
        std::thread::sleep(Duration::from_millis(50));
        before == slept
    }));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(wakeups(), slept, "an idle log thread woke up");
}
