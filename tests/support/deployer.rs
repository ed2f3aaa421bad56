//! Deploying by the control socket, one step at a time.

use super::app::{App, Release};
use super::{PATIENCE, Svd, run_limited};
use airdock::api::client::{Client, ClientError};
use airdock::api::types::ApiError;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whoever deploys, with the lock.
pub struct Deployer {
    pub client: Client,
    pub app: &'static str,
    pub fence: Value,
    pub staging: PathBuf,
    /// Where releases are made that are sent.
    pub site: App,
}

impl Deployer {
    pub fn new(svd: &Svd, app: &'static str, number: u64) -> Deployer {
        // As svctl counts: what it locks with afterwards is one more.
        let fence = json!({ "number": number << 32, "rollout": format!("rollout-{number}") });
        let client = Client::new(&svd.socket()).expect("a client");
        let site = svd.app("upload");
        let mut deployer = Deployer { client, app, fence, staging: PathBuf::new(), site };
        let locked = deployer.ok("lock", json!({ "seconds": 600, "holder": "alice", "message": "a test" }));
        deployer.staging = locked["staging"].as_str().expect("a path").into();
        deployer
    }

    pub fn ask(&self, verb: &str, mut body: Value) -> Result<Value, ApiError> {
        body["fence"] = self.fence.clone();
        let result = self.client.act(&format!("/v1/apps/{}/{verb}", self.app), Some(&body), |_| {});
        match result {
            Ok(value) => Ok(serde_json::from_str(value.get()).expect("JSON")),
            Err(ClientError::Api(error)) => Err(error),
            Err(error) => panic!("{verb}: {error}"),
        }
    }

    #[track_caller]
    pub fn ok(&self, verb: &str, body: Value) -> Value {
        self.ask(verb, body).unwrap_or_else(|e| panic!("{verb}: {e:?}"))
    }

    #[track_caller]
    pub fn fails(&self, verb: &str, body: Value) -> ApiError {
        self.ask(verb, body).expect_err("it must fail")
    }

    /// Puts a directory into the staging place, as rsync would.
    pub fn send(&self, dir: &Path) {
        let mut rsync = Command::new("sh");
        rsync
            .args(["-c", "find \"$2\" -mindepth 1 -delete && cp -a \"$1\"/. \"$2\"", "sh"])
            .arg(dir)
            .arg(&self.staging);
        assert!(run_limited(rsync, PATIENCE).status.success());
    }

    #[track_caller]
    pub fn stage(&self, release: &Release, id: &str) {
        self.send(&self.site.publish(release));
        self.ok("stage", json!({ "release": id, "source": format!("source of {id}"), "label": "production" }));
    }

    #[track_caller]
    pub fn activate(&self, id: &str) -> Value {
        self.ok("activate", json!({ "release": id, "lease_seconds": 60 }))
    }

    /// All the way.
    #[track_caller]
    pub fn deploy(&self, release: &Release, id: &str) {
        self.stage(release, id);
        self.ok("build", json!({ "release": id }));
        self.activate(id);
        self.ok("confirm", json!({}));
    }

    pub fn status(&self) -> Value {
        self.client.fetch(&format!("/v1/apps/{}", self.app)).expect("its status")
    }

    pub fn state_of(&self, id: &str) -> String {
        let status = self.status();
        let found = status["releases"].as_array().expect("a list").iter().find(|r| r["release"] == id).cloned();
        found.map_or_else(String::new, |r| r["state"].as_str().expect("a word").to_owned())
    }
}
