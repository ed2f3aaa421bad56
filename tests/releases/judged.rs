//! `svctl judge`: by an app, by what was deployed of it, or by that alone.

use super::deploy;
use super::support::Svd;
use super::support::plain::script;
use std::fs;

/// Two apps and a service that is none; `run` is shipped to both, and `only` to one.
fn site() -> Svd {
    let mut svd = Svd::new();
    for name in ["job", "mail"] {
        let root = svd.path("srv").join(name);
        fs::create_dir_all(&root).expect("the root");
        let more = format!("root = '{}'\n[stop]\ngrace = '1s'\n[deploy]\nbuild = 'none'\n", root.display());
        svd.service(name, &script("exec sleep 1000", &more));
    }
    svd.service("plain", &script("exec sleep 1000", "[stop]\ngrace = '1s'\n"));
    fs::create_dir(svd.path("home")).expect("mkdir");
    for file in ["run", "only"] {
        fs::write(svd.path("home").join(file), file).expect("write");
    }
    svd.start();
    svd
}

#[test]
fn an_id_alone_is_enough_where_one_app_has_it() {
    let svd = site();
    let home = svd.path("home");
    let ship = |app: &str, file: &str| {
        let (code, said) = deploy(&svd, &home, None, &["deploy", app, "--artifact", file, "--bake", "0s"]);
        assert_eq!(code, Some(0), "{said}");
        svd.json(&["releases", app])["confirmed"].as_str().expect("a release").to_owned()
    };
    let only = ship("job", "only");
    let run = ship("job", "run");
    assert_eq!(ship("mail", "run"), run, "it is called by its content");
    let judge = |words: &[&str]| deploy(&svd, &home, None, &[&["judge"], words].concat());
    let (code, latest) = judge(&["job"]);
    assert!(code == Some(0) && latest.contains(&format!("job → {run} (rollout {run}-")), "{latest}");
    let (code, said) = judge(&[&only]);
    assert!(code == Some(0) && said.contains(&format!("job → {only} (rollout {only}-")), "{said}");
    // Both have that release, and each a rollout of its own.
    let (code, said) = judge(&[&run]);
    assert!(code == Some(1) && said.contains(&format!("job and mail have a rollout {run}")), "{said}");
    assert!(said.contains(&format!("svctl judge mail {run}")), "{said}");
    let rollout = latest.split_once("(rollout ").and_then(|(_, rest)| rest.split_once(')')).expect("a rollout").0;
    let (code, said) = judge(&[rollout]);
    assert_eq!((code, said), (Some(0), latest));
    let (code, said) = judge(&["deploy-2001-01-01_00-00-00"]);
    assert!(code == Some(1) && said.contains("is no app, and no rollout or release of one"), "{said}");
    // The same by a fleet file, which knows the apps.
    let app = |name: &str| format!("[app.{name}]\nartifact = 'run'\n");
    let text = format!("hosts = ['here']\n[host.here]\nlocal = true\n{}{}", app("job"), app("mail"));
    fs::write(home.join("fleet.toml"), text).expect("the fleet file");
    let (code, said) = judge(&[&only]);
    assert!(code == Some(0) && said.contains(&format!("job → {only}")), "{said}");
    let (code, said) = judge(&[&run]);
    assert!(code == Some(1) && said.contains("job and mail have a rollout"), "{said}");
    let (code, said) = judge(&["mail", &run]);
    assert!(code == Some(0) && said.contains("mail → "), "{said}");
}
