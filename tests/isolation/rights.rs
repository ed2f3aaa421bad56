//! What a service may do beyond files.

use super::{breaks_out_only_without, works_with};
use crate::support::plain::needs_root;

const AS_NOBODY: &str = "user = 'nobody'";

#[test]
fn capabilities_are_given_up() {
    if needs_root() {
        return;
    }
    let chown = "import tempfile\nf = tempfile.NamedTemporaryFile()\nos.chown(f.name, 12, 12)";
    breaks_out_only_without("capabilities = []", "", chown, "Operation not permitted");
    works_with("capabilities = ['chown']", "", chown);
    // A plain user gets what is named, and no more.
    let bind =
        "s = socket.socket()\ns.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\ns.bind(('127.0.0.1', 79))";
    works_with("capabilities = ['net_bind_service']", AS_NOBODY, bind);
    let both = format!("{bind}\nos.chown('/etc/hostname', 0, 0)");
    match super::Attempt::new("capabilities = ['net_bind_service']", &both).top(AS_NOBODY).run() {
        super::Outcome::Refused(why) => assert!(why.contains("Operation not permitted"), "{why}"),
        super::Outcome::Done => panic!("it has more than it was given"),
    }
}

#[test]
fn no_new_privileges_are_got_by_set_user_id_programs() {
    if needs_root() {
        return;
    }
    // A copy of a program that says who it is, with the set-user-ID bit.
    let dir = tempfile::Builder::new().prefix("airdock-suid-").tempdir_in("/var/lib").expect("a directory");
    let program = dir.path().join("id");
    std::fs::copy("/usr/bin/id", &program).expect("a copy");
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(dir.path(), mode(0o755)).expect("its mode");
    std::fs::set_permissions(&program, mode(0o4755)).expect("its mode");
    let ask = format!(
        "import subprocess\nwho = subprocess.run(['{}', '-u'], capture_output=True, text=True).stdout\n\
         assert who == '0\\n', 'it is still ' + who",
        program.display()
    );
    breaks_out_only_without("no_new_privileges = true", AS_NOBODY, &ask, "it is still 65534");
}
