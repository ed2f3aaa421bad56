//! Environment files where the service's user may write: svd reads them, and hands over what they say.

use super::support::plain::{NOBODY, needs_root, script};
use super::support::svd::both;
use super::support::{PATIENCE, Svd, wait_until};
use super::{Victim, hard_link, link, users_directory};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

const SHOWS: &str = "echo has=$precious; exec sleep 100000";

fn service(svd: &Svd, name: &str, file: &Path) {
    svd.service(
        name,
        &script(SHOWS, &format!("user = 'nobody'\nenvironment_files = [{:?}]", file.display().to_string())),
    );
}

#[test]
fn a_service_is_given_no_file_that_its_user_may_not_read() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let victim = Victim::new(&svd);
    let users = svd.path("users");
    users_directory(&users);
    for (plant, name) in [(link as fn(&Path, &Path), "link"), (hard_link, "name")] {
        let file = users.join(name);
        plant(&victim.0, &file);
        assert!(fs::read_to_string(&file).expect("naive").contains("secret-of-root"), "a naive daemon hands it over");
        service(&svd, name, &file);
    }
    // What is fine: root's own file where only root decides, and whatever the user may read.
    service(&svd, "roots", &victim.0);
    let own = users.join("own.env");
    fs::write(&own, "precious=of-the-user\n").expect("a file");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).expect("its mode");
    chown(&own, Some(NOBODY), None).expect("its owner");
    service(&svd, "own", &own);
    svd.start();
    for name in ["roots", "own"] {
        svd.wait_state(name, "running");
        wait_until("it has printed", PATIENCE, || svd.output(name).contains("has="));
    }
    assert!(svd.output("own").contains("has=of-the-user"));
    // The second name makes the victim no less root's where it is.
    assert!(svd.output("roots").contains("has=secret-of-root"), "{}", svd.output("roots"));
    for name in ["link", "name"] {
        wait_until("it is refused", PATIENCE, || both(&svd.svctl(&["status", name])).contains("others decide"));
        assert!(!svd.output(name).contains("secret-of-root"), "{}", svd.output(name));
    }
    assert!(!svd.said().contains("secret-of-root"));
}
