use super::*;
use proptest::prelude::*;

fn counts(rest: &str) -> Option<Vec<(Said, f64)>> {
    let mut all = Vec::new();
    read(rest.as_bytes(), |count| all.push((count.said, count.times))).then_some(all)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn prefixes_are_taken_off() {
    let prefix = Prefix(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
    let text = format!("{prefix}.requests:1|c");
    assert_eq!(line(text.as_bytes()), Line::Ours(prefix, b"requests:1|c"));
    assert_eq!(line(text.to_uppercase().as_bytes()), Line::Foreign, "the mark is in lower case");
    for foreign in ["", "airdock", "airdock.requests:1|c", "web.requests:1|c", &text[1..], &text[..39]] {
        assert_eq!(line(foreign.as_bytes()), Line::Foreign, "{foreign:?}");
    }
    // What from_str_radix would take as a sign.
    assert_eq!(line(format!("airdock+{:031x}.requests:1|c", 5).as_bytes()), Line::Foreign);
    assert!(!format!("{prefix:?}").contains('6'), "it is a secret");
}

#[test]
fn the_documented_names() {
    assert_eq!(counts("requests:3|c"), Some(vec![(Said::Finished, 3.0)]));
    assert_eq!(counts("begun:1|c"), Some(vec![(Said::Begun, 1.0)]));
    assert_eq!(counts("errors:1|c"), Some(vec![(Said::Errors, 1.0)]));
    assert_eq!(counts("5xx:2|c"), Some(vec![(Said::Errors, 2.0)]));
    assert_eq!(counts("duration:12.5|ms"), Some(vec![(Said::Took(Duration::from_micros(12_500)), 1.0)]));
    let request = |took, error| (Said::Request { took, error }, 1.0);
    assert_eq!(counts("requests:7|ms"), Some(vec![request(ms(7), false)]));
}

#[test]
fn what_gunicorn_and_micrometer_send() {
    assert_eq!(counts("gunicorn.requests:1|c|@1.0"), Some(vec![(Said::Finished, 1.0)]));
    assert_eq!(counts("gunicorn.request.status.200:1|c|@1.0|#a:b"), Some(vec![]));
    assert_eq!(counts("gunicorn.request.status.503:1|c|@1.0"), Some(vec![(Said::Errors, 1.0)]));
    assert_eq!(counts("gunicorn.request.duration:0.374|ms").map(|c| c.len()), Some(1));
    assert_eq!(counts("gunicorn.workers:1|g|#x"), Some(vec![]));
    let request = |took, error| (Said::Request { took, error }, 1.0);
    assert_eq!(counts("http.server.requests:12|ms|#method:GET,status:200,uri:/x"), Some(vec![request(ms(12), false)]));
    assert_eq!(counts("http.server.requests:12|ms|#status:500,uri:/x"), Some(vec![request(ms(12), true)]));
    assert_eq!(counts("http.server.requests:12|ms|#status:5000"), Some(vec![request(ms(12), false)]));
}

#[test]
fn samples_and_several_values() {
    assert_eq!(counts("requests:1|c|@0.1"), Some(vec![(Said::Finished, 10.0)]));
    assert_eq!(counts("duration:1:2|ms|@0.5"), Some(vec![(Said::Took(ms(1)), 2.0), (Said::Took(ms(2)), 2.0)]));
    assert_eq!(counts("requests:0|c"), Some(vec![]));
    assert_eq!(counts("requests:1|c\r"), Some(vec![(Said::Finished, 1.0)]));
}

#[test]
fn nonsense_is_malformed() {
    for text in [
        "",
        "requests",
        "requests:1",
        "requests:|c",
        "requests:x|c",
        "requests:-1|c",
        "requests:+1|c",
        "requests:nan|c",
        "requests:inf|c",
        "requests:1e300|c",
        "requests:1e9999|c",
        "requests:1|c|@0",
        "requests:1|c|@2",
        "requests:1|c|@x",
        "requests:1|c|@1e-300",
    ] {
        assert_eq!(counts(text), None, "{text:?}");
    }
    assert!(!read(b"requests\xff:1|c", |_| panic!("a count")));
}

proptest! {
    #[test]
    fn whatever_comes_is_survived(datagram in prop::collection::vec(any::<u8>(), 0..600)) {
        check(&datagram);
    }

    #[test]
    fn damaged_lines_are_survived(
        names in prop::collection::vec("(requests|5xx|duration|http.server.requests|x):[0-9.e:+-]{0,9}\\|(c|ms|g)(\\|@[0-9.e-]{0,5})?(\\|#[a-z:0-9,]{0,12})?", 1..6),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let lines: Vec<String> = names.iter().map(|n| format!("{}.{n}", Prefix(7))).collect();
        let mut datagram = lines.join("\n").into_bytes();
        check(&datagram);
        let at = at.index(datagram.len());
        datagram[at] = byte;
        check(&datagram);
    }

    #[test]
    fn what_is_sent_is_counted(value in 0u32..1_000_000, prefix in any::<u128>()) {
        let text = format!("{}.requests:{value}|c", Prefix(prefix));
        let Line::Ours(found, rest) = line(text.as_bytes()) else { panic!("foreign") };
        prop_assert_eq!(found, Prefix(prefix));
        let mut sum = 0.0;
        prop_assert!(read(rest, |count| sum += count.times));
        prop_assert_eq!(sum, f64::from(value));
    }
}

/// Every count keeps what [`Count`] promises.
fn check(datagram: &[u8]) {
    for text in lines(datagram) {
        if let Line::Ours(_, rest) = line(text) {
            read(rest, |count| assert!(count.times > 0.0 && count.times <= MOST, "{count:?}"));
        }
    }
}
