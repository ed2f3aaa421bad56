//! Migrations that a rollback crosses.

use super::support::app::Release;
use super::support::env::Env;
use super::{Deployer, GUNICORN, running, site};
use serde_json::json;
use std::fs;

#[test]
fn a_rollback_undoes_a_migration_where_it_is_told_to() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (svd, _) = site(&env);
    let file = svd.path("etc/conf.d/web.toml");
    let text = fs::read_to_string(&file).expect("its file");
    let down = "[deploy.migrate]\ndown = ['sh', '-c', 'echo down >> {root}/migrated']\n";
    svd.service("web", &text.replace("[deploy.migrate]\n", down));
    svd.ok(&["update"]);
    let ship = |number: u64, id: &str, migrates: bool| {
        let deployer = Deployer::new(&svd, "web", number);
        let dir = deployer.site.publish(&Release::new(id));
        if migrates {
            fs::write(dir.join("migration"), "").expect("write");
        }
        deployer.send(&dir);
        deployer.ok("stage", json!({ "release": id, "source": id }));
        let ran = deployer.ok("step", json!({ "release": id, "step": "migrate" }))["ran"].clone();
        assert_eq!(ran, migrates);
        deployer.activate(id);
        deployer.ok("confirm", json!({}));
        deployer.ok("unlock", json!({}));
    };
    let schema = || fs::read_to_string(svd.path("srv/web/migrated")).unwrap_or_default();
    ship(1, "r1", false);
    ship(10, "r2", true);
    assert!(svd.ok(&["releases", "web"]).contains("confirmed, serving, migrated"));
    let said = svd.fails(&["rollback", "web"]);
    assert!(said.contains("a migration came with r2") && said.contains("--down"), "{said}");
    assert_eq!((running(&svd)[0].as_str(), schema().as_str()), ("web running r2", "x\n"));
    svd.ok(&["rollback", "web", "--down"]);
    assert_eq!((running(&svd)[0].as_str(), schema().as_str()), ("web running r1", "x\ndown\n"));
    ship(20, "r3", true);
    let said = svd.ok(&["rollback", "web", "--force"]);
    assert!(said.contains("The migration that came with r3 stays."), "{said}");
    assert_eq!((running(&svd)[0].as_str(), schema().as_str()), ("web running r1", "x\ndown\nx\n"));
}
