//! `build_on = "here"`: wheels come with the release, and hosts ask no index.

use super::support::app::Release;
use super::support::env::Env;
use super::support::{Svd, http_get};
use super::{GUNICORN, built_site, commit, deploy};
use std::fs;

fn wheels(svd: &Svd, release: &str) -> Vec<String> {
    let dir = svd.path("srv/web/releases").join(release).join(".wheels");
    let entries = fs::read_dir(dir).expect("its wheels").map(|e| e.expect("a file").file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

fn release(svd: &Svd) -> String {
    svd.status("web")["release"].as_str().expect("it runs").to_owned()
}

#[test]
fn wheels_come_with_the_release() {
    if Env::get(GUNICORN).is_none() {
        return;
    }
    let (svd, address) = built_site(Svd::start);
    let file = svd.path("etc/conf.d/web.toml");
    let text = fs::read_to_string(&file).expect("its file").replace("[deploy]\n", "[deploy]\nbuild_on = 'here'\n");
    svd.service("web", &text);
    svd.ok(&["update"]);
    let repository = svd.path("repository");
    fs::create_dir_all(&repository).expect("mkdir");
    fs::create_dir(svd.path("home")).expect("mkdir");
    fs::write(repository.join("requirements.txt"), "gunicorn==27.0.1\n").expect("write");
    commit(&svd, &repository, &Release::new("one"));
    let ship = || deploy(&svd, &repository, None, &["deploy", "web", "--bake", "0s"]);
    let (code, said) = ship();
    assert!(code == Some(0) && said.contains("pip wheel") && said.contains("--no-index"), "{said}");
    assert!(http_get(address, "/").expect("it answers").1.contains("release=one"));
    let first = wheels(&svd, &release(&svd));
    assert!(first.iter().any(|name| name.starts_with("gunicorn-27.0.1")), "{first:?}");
    commit(&svd, &repository, &Release::new("two"));
    let (code, said) = ship();
    assert!(code == Some(0) && !said.contains("pip wheel") && !said.contains("--no-index"), "{said}");
    assert!(http_get(address, "/").expect("it answers").1.contains("release=two"));
    assert_eq!(wheels(&svd, &release(&svd)), first, "from the cache");
    fs::write(repository.join("requirements.txt"), "no-such-package-anywhere==7\n").expect("write");
    commit(&svd, &repository, &Release::new("three"));
    let (code, said) = ship();
    assert!(code == Some(1) && said.contains("nothing was done on any host"), "{said}");
}
