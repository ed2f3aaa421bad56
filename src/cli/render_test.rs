use super::*;
use crate::api::testing::{full_status, running};
use crate::api::types::{Change, ChangeAction, ErrorCode, HealthState};

fn row(name: &str, state: ServiceState) -> StatusRow {
    StatusRow {
        name: name.into(),
        state,
        release: None,
        generation: Some(1),
        pid: Some(4711),
        further_workers: 0,
        since_seconds: 3725,
        restarts: 0,
        enabled: true,
        draining: false,
        reason: None,
    }
}

fn rows() -> Vec<StatusRow> {
    let mut airship = row("airship", ServiceState::Running);
    airship.release = Some("deploy-2026-11-22_18-40-00".into());
    airship.generation = Some(12);
    airship.draining = true;
    let mut broken = row("db", ServiceState::Failed);
    broken.pid = None;
    broken.restarts = 10;
    broken.since_seconds = 5;
    broken.reason = Some("exited with code 1\n10 times; \x1b[31mnext try in 4m".into());
    let mut stopped = row("web", ServiceState::Stopped);
    (stopped.pid, stopped.generation) = (None, None);
    let mut several = row("queue", ServiceState::Running);
    several.further_workers = 2;
    vec![airship, broken, several, stopped]
}

#[test]
fn ages() {
    let ages: Vec<String> = [0, 59, 60, 3599, 3600, 86_399, 86_400, 8_640_000].map(age).into();
    assert_eq!(ages, ["0s", "59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d0h", "100d0h"]);
}

#[test]
fn the_table_is_aligned_and_plain() {
    insta::assert_snapshot!(table(&rows(), false), @r#"
    NAME     STATE              RELEASE                     GEN  PID      SINCE  RESTARTS  REASON
    airship  running (drained)  deploy-2026-11-22_18-40-00  12   4711     1h02m  0
    db       failed             -                           1    -        5s     10        exited with code 1 10 times; \x1b[31mnext try in 4m
    queue    running            -                           1    4711 +2  1h02m  0
    web      stopped            -                           -    -        1h02m  0
    "#);
}

#[test]
fn colour_is_only_beside_the_word() {
    let coloured = table(&rows(), true);
    assert!(coloured.contains("\x1b[31mfailed\x1b[0m"));
    let plain = [GREEN, YELLOW, RED, PLAIN].iter().fold(coloured, |text, code| text.replace(code, ""));
    assert_eq!(plain, table(&rows(), false));
}

#[test]
fn without_services_it_says_what_to_do() {
    assert!(table(&[], false).contains("svctl update"));
}

#[test]
fn details_of_a_service_with_everything() {
    insta::assert_snapshot!(details(&full_status("airship"), false), @r#"
    airship: running for 5m00s (since 2026-11-22T18:40:00Z)
           kind: gunicorn
        enabled: yes
        release: deploy-2026-11-22_18-40-00
           user: airdock-web (71234)
     listens on: 0.0.0.0:8000
         health: healthy, checked 2026-11-22T18:44:55Z
         memory: 175 MiB
       restarts: 2
    generation 7 committed, release deploy-2026-11-22_18-40-00, gunicorn workers 4, for 5m00s
      worker 0: running, pid 4711, for 5m00s, restarts 2, before: killed by SIGKILL, says: serving
        gunicorn worker 4712: running, for 4m50s, 512 requests, 2 5xx, 1 open, 45 MiB, p50 11.0 ms, p90 70.0 ms, p99 240.0 ms
        gunicorn worker 4713: starting
      requests 1000, 5xx 2, overdue 1, workers died with requests open 0; last minute p50 12.0 ms, p90 80.0 ms, p99 250.0 ms
    generation 6 draining, release deploy-2026-11-21_10-00-00, for 5m00s
      worker 0: running, pid 812, for 5m00s
    "#);
}

#[test]
fn details_of_a_failed_service() {
    let mut status = running("db");
    status.state = ServiceState::Failed;
    status.reason = Some("exited with code 1 ten times within 5 minutes".into());
    status.next_attempt_seconds = Some(239.2);
    status.last_output = vec!["Traceback:".into(), "\tno module\x07".into()];
    status.generations.clear();
    status.enabled = false;
    status.draining = true;
    status.health = Some(crate::api::types::HealthStatus {
        state: HealthState::Unhealthy,
        last_check: None,
        failures: 3,
        message: Some("connection refused".into()),
    });
    insta::assert_snapshot!(details(&status, false), @r#"
    db: failed for 5m00s (since 2026-11-22T18:40:00Z)
         reason: exited with code 1 ten times within 5 minutes
       next try: in 4m00s
           kind: command
        enabled: no, does not start with svd
        drained: yes, out of the load balancer (svctl undrain)
         health: unhealthy, 3 failures in a row: connection refused
       restarts: 0
    last output:
      | Traceback:
      |  no module\x07
    "#);
}

#[test]
fn errors_say_what_and_what_to_do() {
    let failure = ApiError::new(ErrorCode::BadConfiguration, "Nothing was changed: 1 error.")
        .details(vec!["conf.d/web.toml:3:1: unknown key\n  did you mean user?".into()])
        .last_output(vec!["boom\x1b[2J".into()])
        .hint("Correct it and try again.");
    insta::assert_snapshot!(error("svctl: ", &failure), @r#"
    svctl: Nothing was changed: 1 error.
      conf.d/web.toml:3:1: unknown key
        did you mean user?
      last output:
      | boom\x1b[2J
      Correct it and try again.
    "#);
}

#[test]
fn results_and_updates() {
    let mut out = service_result(&ServiceResult::done("web", true, "started with pid 7"));
    out += &service_result(&ServiceResult::failed("db", ApiError::new(ErrorCode::Failed, "It died.")));
    out += &update(&UpdateResult {
        changed: true,
        dry_run: true,
        changes: vec![
            Change { service: "web".into(), action: ChangeAction::Reload, keys: vec!["command".into(), "user".into()] },
            Change { service: "old".into(), action: ChangeAction::Remove, keys: vec![] },
        ],
        services: vec![],
        notes: vec!["[http] listen takes effect when svd starts again.".into()],
    });
    out += &update(&UpdateResult::default());
    let mut line = Progress::now(Some("web"), "ready", "generation 8 is ready");
    line.dropped = 3;
    out += &progress(&line);
    insta::assert_snapshot!(out, @r#"
    web: started with pid 7
    db: It died.
    reload web (command, user)
    remove old
    note: [http] listen takes effect when svd starts again.
    Nothing was done: this was a dry run.
    Nothing has changed.
    (3 lines were left out)
    web: generation 8 is ready
    "#);
}
