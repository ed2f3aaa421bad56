//! Uploads, by the transport itself.

use super::bed::Bed;
use airdock::fleet::inventory;
use airdock::fleet::transport::ssh::{Settings, Ssh};
use airdock::fleet::transport::{Transport, Upload};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

#[test]
fn uploads_make_directories_the_same() {
    let Some(bed) = Bed::start(2) else { return };
    let from = bed.path("release with 'blanks'");
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(from.join("sub/large"), "x".repeat(3_000_000)).unwrap();
    fs::write(from.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(from.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("sub/large", from.join("link")).unwrap();
    let staging = bed.hosts[0].svd.path("staging $HOME");
    fs::create_dir(&staging).unwrap();
    let place = |name: &str| staging.join(name).display().to_string();
    let upload = |to: &str, like: &[&str]| Upload {
        from: from.clone().into(),
        to: place(to),
        like: like.iter().map(|name| place(name)).collect(),
    };
    let fleet = inventory::load(&bed.path("fleet.toml")).unwrap();
    let settings =
        Settings { config: fleet.ssh_config.clone(), connect_timeout: Duration::from_secs(5), ..Settings::default() };
    bed.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ssh = Ssh::new(settings.clone());
        let copy = |host: usize, upload: &Upload| runtime.block_on(ssh.copy(&fleet.hosts[host], upload));
        copy(0, &upload("one", &[])).unwrap();
        assert_eq!(fs::read(staging.join("one/sub/large")).unwrap(), fs::read(from.join("sub/large")).unwrap());
        assert_eq!(fs::read_link(staging.join("one/link")).unwrap().to_str(), Some("sub/large"));
        assert_eq!(fs::metadata(staging.join("one/run")).unwrap().mode() & 0o777, 0o755);

        // What is there already is made the same; what has not changed comes from where it is.
        fs::write(staging.join("one/left-over"), "x").unwrap();
        fs::write(staging.join("one/run"), "#!/bin/zh\n").unwrap();
        copy(0, &upload("one", &[])).unwrap();
        assert!(!staging.join("one/left-over").exists());
        assert_eq!(fs::read_to_string(staging.join("one/run")).unwrap(), "#!/bin/sh\n");
        fs::write(from.join("run"), "#!/bin/bash\n").unwrap();
        copy(0, &upload("two", &["one"])).unwrap();
        assert_eq!(fs::read_to_string(staging.join("two/run")).unwrap(), "#!/bin/bash\n");
        assert_eq!(fs::metadata(staging.join("two/sub/large")).unwrap().len(), 3_000_000);
        // A copy, no second name: whoever changes the one does not change the other.
        assert_eq!(fs::metadata(staging.join("two/sub/large")).unwrap().nlink(), 1);

        let error = copy(0, &upload("no/such/place", &[])).unwrap_err();
        assert!(!error.away && error.to_string().contains("could not be copied to web-0: rsync"), "{error}");
        let odd = Upload { to: "-relative".to_owned(), ..upload("x", &[]) };
        assert!(copy(0, &odd).unwrap_err().to_string().contains("no absolute path"));
        bed.hosts[1].vanish();
        let error = copy(1, &upload("one", &[])).unwrap_err();
        assert!(error.away && error.to_string().contains("web-1 cannot be reached"), "{error}");
    });
}
