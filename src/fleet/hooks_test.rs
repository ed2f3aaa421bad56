use super::*;
use crate::fleet::rollout::plan::Purpose;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

const PATIENCE: Duration = Duration::from_secs(30);

fn message(event: Occasion) -> Message {
    Message {
        event,
        text: "\"quoted\" \\ and\nlines, é".to_owned(),
        app: "web".into(),
        release: "r2".into(),
        rollout: "r2-1".into(),
        purpose: Purpose::CatchUp,
        by: "jane@laptop".into(),
        at: "2026-11-22T18:40:00Z".into(),
        hosts: vec!["web-0".into()],
        wave: None,
        cause: None,
    }
}

fn shell(text: &str) -> Hook {
    Hook::Command(["sh", "-c", text].map(Into::into).to_vec())
}

fn hooks(on: &[(Occasion, Hook)], every: Option<Hook>) -> Hooks {
    let on: BTreeMap<Occasion, Hook> = on.iter().cloned().collect();
    Hooks { on, every, timeout: PATIENCE }
}

#[test]
fn a_command_reads_json_where_the_fleet_file_is() {
    let dir = tempfile::tempdir().unwrap();
    let hook = shell("cat > \"heard-$AIRDOCK_EVENT-$AIRDOCK_APP\"; exit 3");
    let failed = call(&hook, &message(Occasion::Wave), dir.path(), PATIENCE).unwrap_err();
    assert_eq!(failed, "sh failed (exit status: 3)");
    let heard: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("heard-wave-web")).unwrap()).unwrap();
    assert_eq!((&heard["event"], &heard["purpose"]), (&"wave".into(), &"catch-up".into()));
    assert_eq!(heard["text"], "\"quoted\" \\ and\nlines, é");
    let slow = call(&shell("exec sleep 1000"), &message(Occasion::Wave), dir.path(), Duration::from_secs(1));
    assert_eq!(slow.unwrap_err(), "sh did not end within 1 s");
}

/// What a server was sent, and answers.
fn server(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/secret?token=a%22b", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let said = String::from_utf8_lossy(&text).into_owned();
            let whole = said.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                let length = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                body.len() >= length.unwrap_or(0_usize)
            });
            if whole {
                stream.write_all(answer.as_bytes()).unwrap();
                return said;
            }
            let n = stream.read(&mut buffer).unwrap();
            assert!(n > 0, "{said}");
            text.extend_from_slice(&buffer[..n]);
        }
    });
    (address, thread)
}

#[test]
fn a_web_hook_is_posted_to() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED, as there is no curl");
        return;
    }
    let (address, served) = server("HTTP/1.1 204 No Content\r\n\r\n");
    call(&Hook::Webhook(address.into()), &message(Occasion::Success), Path::new("/"), PATIENCE).unwrap();
    let sent = served.join().unwrap();
    let (head, body) = sent.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /secret?token=a%22b HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("\r\ncontent-type: application/json"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["text"], "\"quoted\" \\ and\nlines, é");
    let (address, served) = server("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n");
    let failed =
        call(&Hook::Webhook(address.into()), &message(Occasion::Success), Path::new("/"), PATIENCE).unwrap_err();
    assert!(failed.contains("500"), "{failed}");
    served.join().unwrap();
}

#[test]
fn only_the_command_for_start_forbids_anything() {
    let dir = tempfile::tempdir().unwrap();
    let complaints = Arc::new(Mutex::new(Vec::new()));
    let teller = |hooks: &Hooks| {
        let complaints = Arc::clone(&complaints);
        Teller::new(hooks, dir.path(), move |text| complaints.lock().unwrap().push(text))
    };
    let told = "echo $AIRDOCK_EVENT >> told";
    let refusing = hooks(&[(Occasion::Start, shell("echo it is Friday >&2; exit 1"))], Some(shell(told)));
    let one = teller(&refusing);
    let refused = one.start(message(Occasion::Start)).unwrap_err();
    assert_eq!(refused, "sh failed (exit status: 1): it is Friday");
    one.end();
    assert!(!dir.path().join("told").exists(), "nobody is told of what does not begin");
    let nowhere = hooks(&[(Occasion::Start, Hook::Command(vec!["./nowhere".into()]))], None);
    let one = teller(&nowhere);
    assert!(one.start(message(Occasion::Start)).unwrap_err().contains("cannot be run"));
    one.end();

    let all = hooks(
        &[(Occasion::Start, shell("echo asked >> told")), (Occasion::Failure, shell("exit 7"))],
        Some(shell(told)),
    );
    let one = teller(&all);
    one.start(message(Occasion::Start)).unwrap();
    for event in [Occasion::Wave, Occasion::Failure, Occasion::Success] {
        one.tell(message(event)).unwrap();
    }
    one.end();
    assert_eq!(fs::read_to_string(dir.path().join("told")).unwrap(), "asked\nstart\nwave\nfailure\nsuccess\n");
    assert_eq!(*complaints.lock().unwrap(), ["The hook for failure has failed: sh failed (exit status: 7)."]);
    let unreachable = hooks(&[(Occasion::Start, Hook::Webhook("http://127.0.0.1:1/".into()))], None);
    let one = teller(&unreachable);
    one.start(message(Occasion::Start)).unwrap();
    one.end();
}
