//! Steps of a deploy that the end of svd would cut off.

use super::Deployer;
use super::support::plain::{SLEEP, script};
use super::support::{PATIENCE, Svd, wait_until};
use airdock::api::client::{Client, ClientError};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

const MIGRATE: &str =
    "command = ['sh', '-c', 'echo begun >> {root}/migrated; while ! test -e {root}/go; do sleep 0.1; done; echo done']";

fn site() -> (Svd, Deployer) {
    let mut svd = Svd::new();
    let root = svd.path("srv/job");
    fs::create_dir_all(&root).expect("the root");
    let more = format!("root = '{}'\n[stop]\ngrace = '1s'\n[deploy]\nbuild = 'none'\n", root.display());
    svd.service("job", &script(SLEEP, &format!("{more}[deploy.migrate]\n{MIGRATE}\n")));
    svd.start();
    let deployer = Deployer::new(&svd, "job", 1);
    let upload = svd.path("upload");
    fs::create_dir_all(&upload).expect("mkdir");
    fs::write(upload.join("file"), "").expect("write");
    deployer.send(&upload);
    deployer.ok("stage", json!({ "release": "r1", "source": "r1" }));
    (svd, deployer)
}

fn migrated(svd: &Svd) -> PathBuf {
    svd.path("srv/job/migrated")
}

#[test]
fn what_could_not_begin_is_not_said_to_have_been_cut_off() {
    let (svd, deployer) = site();
    let file = svd.path("etc/conf.d/job.toml");
    let text = fs::read_to_string(&file).expect("its file").replace(MIGRATE, "command = ['{env.NOT_THERE_AT_ALL}']");
    fs::write(&file, text).expect("write");
    svd.ok(&["update"]);
    for _ in 0..2 {
        let refused = deployer.fails("step", json!({ "release": "r1", "step": "migrate" }));
        assert!(refused.message.contains("svd has no variable NOT_THERE_AT_ALL"), "{refused}");
    }
}

/// Runs the migration, and does something in the midst of it. Gives what became of the call.
fn in_the_migration(svd: &mut Svd, deployer: &Deployer, done: impl FnOnce(&mut Svd)) -> Result<Value, ClientError> {
    // It may have been begun before.
    let _ = fs::remove_file(migrated(svd));
    let client = Client::new(&svd.socket()).expect("a client");
    let body = json!({ "release": "r1", "step": "migrate", "fence": deployer.fence });
    std::thread::scope(|scope| {
        let call = scope.spawn(move || {
            let value = client.act("/v1/apps/job/step", Some(&body), |_| {})?;
            Ok(serde_json::from_str(value.get()).expect("JSON"))
        });
        wait_until("it has begun", PATIENCE, || migrated(svd).exists());
        done(svd);
        call.join().expect("no panic")
    })
}

#[test]
fn a_migration_is_not_cut_off_without_a_question() {
    let (mut svd, deployer) = site();
    let ran = in_the_migration(&mut svd, &deployer, |svd| {
        let pid = svd.pid();
        for verb in ["shutdown", "upgrade"] {
            let said = svd.fails(&[verb]);
            assert!(said.contains("A deploy is at work here") && said.contains("--force"), "{said}");
            assert!(said.contains("job: migrate of r1, for "), "{said}");
        }
        assert_eq!((svd.pid(), svd.answers()), (pid, true), "nothing has happened to it");
        fs::write(svd.path("srv/job/go"), "").expect("write");
    });
    assert_eq!(ran.expect("it ran to its end")["ran"], true);
    svd.ok(&["upgrade"]);
    assert!(!svd.ok(&["history", "job"]).contains("not known"), "nothing was cut off");
    deployer.ok("unlock", json!({}));
}

#[test]
fn what_is_cut_off_is_known_to_be_unknown() {
    let unknown = |svd: &Svd| svd.ok(&["history", "job"]).matches("how far it came is not known").count();
    type End = fn(&mut Svd);
    // By force; as init does it; as nobody should.
    let ends: [End; 3] = [
        |svd| _ = svd.ok(&["upgrade", "--force"]),
        |svd| {
            assert!(svd.stop().success());
            svd.start();
        },
        |svd| {
            svd.kill_both();
            svd.start();
        },
    ];
    for end in ends {
        let (mut svd, deployer) = site();
        assert!(in_the_migration(&mut svd, &deployer, end).is_err(), "it is cut off");
        let history = svd.ok(&["history", "job"]);
        assert_eq!(unknown(&svd), 1, "{history}");
        // Told once, and not run again without somebody's knowing.
        svd.kill_both();
        svd.start();
        assert_eq!(unknown(&svd), 1);
        deployer.ok("lock", json!({ "seconds": 60 }));
        let refused = deployer.fails("step", json!({ "release": "r1", "step": "migrate" }));
        assert!(refused.message.contains("how far it came is not known"), "{refused}");
        let runs = fs::read_to_string(migrated(&svd)).expect("it began");
        assert_eq!(runs, "begun\n");
    }
}
