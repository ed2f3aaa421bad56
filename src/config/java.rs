//! `[java]`: which JVM, its options, and how large its heap may be.

use toml::de::DeValue;

use super::kind::KindName;
use super::scope::Scope;
use super::section::{Item, Schema, Section};
use super::source::Problem;
use super::spec::{Java, Kind, Limits, Service, Template};
use super::units::show_size;

pub(super) static SCHEMA: Schema = Schema { name: "[java]", keys: &["home", "options"] };

/// Variables in which a JVM looks for options.
const VARIABLES: [&str; 3] = ["JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"];

/// Beside the heap: classes, compiled code, threads, buffers, what the collector needs itself. Of a bare Tomcat it is 96 MiB.
const LEAST_BESIDE: u64 = 192 << 20;

pub(super) fn decode(top: &Section<'_>, scope: &Scope<'_>) -> Java {
    if scope.kind != Some(KindName::Jvm) {
        // That it is another kind's is said with the other keys.
        return Java::default();
    }
    if let Some(item) = top.item("java")
        && let DeValue::String(program) = item.value
    {
        let home = program.strip_suffix("/bin/java").filter(|home| !home.is_empty()).unwrap_or("/usr/lib/jvm/NAME");
        let problem = item.wrong_type("\"java\" must be a table");
        top.file.report(problem.help(format!("name the directory of the JVM: java.home = {home:?}")));
        return Java::default();
    }
    let section = top.section("java", &SCHEMA);
    Java {
        home: section.get("home", |item| home(item, scope)),
        options: section.values("options", |item| scope.template(item)),
    }
}

fn home(item: &Item<'_>, scope: &Scope<'_>) -> Result<Template, Problem> {
    let home = scope.directory(item)?;
    match home.0.trim_end_matches('/').strip_suffix("/bin/java") {
        Some(above) => Err(item
            .problem("this is the program, and not the JVM's directory")
            .help(format!("write {above:?}, in which bin/java is"))),
        None => Ok(home),
    }
}

/// How large a JVM's heap may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heap {
    /// Somebody says it: the option, and where it stands.
    Given(Box<str>, Box<str>),
    /// By svd, of this limit.
    Sized { mebibytes: u64, of: &'static str },
    /// As the JVM has it by itself.
    Default,
}

impl Heap {
    /// Of this service; `more`: variables that it has besides those of its file.
    pub fn of(service: &Service, java: &Java, more: &[(String, String)]) -> Heap {
        let given = java.options.iter().find(|option| says_heap(&option.0)).map(|o| (&*o.0, "java.options"));
        let of_file = service.environment.iter().map(|(name, value)| (&**name, &*value.0));
        let mut variables = of_file.chain(more.iter().map(|(name, value)| (&**name, &**value)));
        let in_variable = || {
            variables.find_map(|(name, value)| {
                let name = VARIABLES.iter().find(|known| **known == name)?;
                Some((value.split_whitespace().find(|word| says_heap(word))?, *name))
            })
        };
        match (given.or_else(in_variable), least(&service.limits)) {
            (Some((option, place)), _) => Heap::Given(option.into(), place.into()),
            (None, Some((of, bytes))) => Heap::Sized { mebibytes: (fitting(bytes) >> 20).max(2), of },
            (None, None) => Heap::Default,
        }
    }

    /// What the JVM is told.
    pub fn option(&self) -> Option<String> {
        match self {
            Heap::Sized { mebibytes, .. } => Some(format!("-Xmx{mebibytes}m")),
            Heap::Given(..) | Heap::Default => None,
        }
    }
}

impl std::fmt::Display for Heap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Heap::Given(option, place) => write!(f, "{option}, by {place}"),
            Heap::Sized { mebibytes, of } => write!(f, "{}, of {of}", show_size(mebibytes << 20)),
            Heap::Default => f.write_str("the JVM's own: a quarter of the memory that it sees"),
        }
    }
}

/// An option after which a JVM has no heap of its own choice.
fn says_heap(option: &str) -> bool {
    let begins = ["-Xmx", "-mx", "-XX:MaxHeapSize=", "-XX:MaxRAM", "-XX:MinRAM"];
    begins.iter().any(|begin| option.starts_with(begin)) || option == "-XX:+AggressiveHeap"
}

/// The limit that a growing heap meets first.
fn least(limits: &Limits) -> Option<(&'static str, u64)> {
    let all = [
        ("limits.memory", limits.memory),
        ("limits.memory_high", limits.memory_high),
        ("limits.restart_above", limits.restart_above),
    ];
    all.into_iter().filter_map(|(key, bytes)| Some((key, bytes?))).min_by_key(|(_, bytes)| *bytes)
}

/// Three quarters, while enough is left for all else; half of what is little.
fn fitting(bytes: u64) -> u64 {
    (bytes - (bytes / 4).max(LEAST_BESIDE).min(bytes)).max(bytes / 2)
}

/// `-Xmx2g` where the limit is 1 GiB: the kernel ends it before it is short of heap; `-Xms1g` above the heap: it does not start.
pub(super) fn check(top: &Section<'_>, service: &Service) {
    let Kind::Jvm { java, .. } = &service.kind else { return };
    let options = top.item("java").and_then(|item| match item.value {
        DeValue::Table(table) => Some(table.get("options")?.span().into()),
        _ => None,
    });
    let Some(span) = options else { return };
    let size = |begin: &str| {
        let mut found = java.options.iter().filter_map(|o| Some((&*o.0, bytes(o.0.strip_prefix(begin)?)?)));
        found.next_back()
    };
    if let (Some((option, bytes)), Some((key, limit))) = (size("-Xmx"), least(&service.limits))
        && bytes >= limit
    {
        let message = format!("with {option} the JVM may use more than {key}, {}", show_size(limit));
        let fits = Heap::Sized { mebibytes: fitting(limit) >> 20, of: key }.option().unwrap_or_default();
        top.file.hint(Problem::new(span, message).help(format!("leave it out ({fits} then), or raise {key}")));
    }
    if let (Some((option, bytes)), Heap::Sized { mebibytes, of }) = (size("-Xms"), Heap::of(service, java, &[]))
        && bytes > mebibytes << 20
    {
        let message = format!(
            "{option} is more than the heap may become, {} by {of}: no JVM starts so",
            show_size(mebibytes << 20)
        );
        top.file.report(Problem::new(span, message).help(format!("lower it, raise {of}, or give -Xmx as well")));
    }
}

/// As a JVM reads it.
fn bytes(text: &str) -> Option<u64> {
    let unit = text.chars().next_back()?;
    let shift = match unit.to_ascii_lowercase() {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        _ => return text.parse().ok(),
    };
    text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};
    use super::*;

    const JVM: &str = "kind = 'jvm'\njar = '/a.jar'\n";

    fn heap(rest: &str, more: &[(&str, &str)]) -> String {
        let s = service(&format!("{JVM}{rest}"));
        let Kind::Jvm { java, .. } = &s.kind else { panic!() };
        let more: Vec<_> = more.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Heap::of(&s, java, &more).to_string()
    }

    #[test]
    fn a_heap_leaves_room_for_what_is_beside_it() {
        for (memory, heap) in [(4096, 3072), (1024, 768), (768, 576), (512, 320), (384, 192), (256, 128), (64, 32)] {
            assert_eq!(fitting(memory << 20) >> 20, heap, "{memory}");
        }
        for bytes in 0..64 {
            assert!(fitting(bytes) <= bytes);
        }
    }

    #[test]
    fn the_first_limit_that_it_meets_sizes_it() {
        assert_eq!(heap("limits.memory = '1GiB'", &[]), "768MiB, of limits.memory");
        assert_eq!(heap("limits = { memory = '2GiB', memory_high = '1GiB' }", &[]), "768MiB, of limits.memory_high");
        assert_eq!(heap("limits.restart_above = '512MiB'", &[]), "320MiB, of limits.restart_above");
        assert_eq!(heap("", &[]), "the JVM's own: a quarter of the memory that it sees");
    }

    #[test]
    fn one_that_is_given_wins() {
        for option in ["-Xmx100m", "-XX:MaxHeapSize=1g", "-XX:MaxRAMPercentage=40", "-XX:MaxRAM=1g", "-mx9m"] {
            let text = format!("limits.memory = '1GiB'\njava.options = ['-Xss1m', '{option}']");
            assert_eq!(heap(&text, &[]), format!("{option}, by java.options"));
        }
        let text = "limits.memory = '1GiB'\nenvironment.JAVA_TOOL_OPTIONS = '-Da=b -Xmx9m'";
        assert_eq!(heap(text, &[]), "-Xmx9m, by JAVA_TOOL_OPTIONS");
        let elsewhere = [("JDK_JAVA_OPTIONS", "-Xmx7m"), ("JAVA_OPTS", "-Xmx8m")];
        assert_eq!(heap("limits.memory = '1GiB'", &elsewhere), "-Xmx7m, by JDK_JAVA_OPTIONS");
        assert_eq!(heap("limits.memory = '1GiB'", &elsewhere[1..]), "768MiB, of limits.memory");
    }

    #[test]
    fn mistakes() {
        let with = |rest: &str| format!("{JVM}{rest}");
        assert_eq!(
            helps(&with("java = '/opt/jdk/bin/java'")),
            ["name the directory of the JVM: java.home = \"/opt/jdk\""]
        );
        assert_eq!(helps(&with("java = 'java'")), ["name the directory of the JVM: java.home = \"/usr/lib/jvm/NAME\""]);
        assert_eq!(helps(&with("java_options = ['-Xmx1g']")), ["the key is options in [java]"]);
        assert_eq!(helps(&with("java.home = '/opt/jdk/bin/java'")), ["write \"/opt/jdk\", in which bin/java is"]);
        assert_eq!(helps(&with("java.home = 'jdk'")), ["begin it with \"/\""]);
        assert_eq!(helps(&with("java.optoins = []")), ["did you mean \"options\"?"]);
        let small = "limits.memory = '1GiB'\njava.options = ['-Xms1g']";
        assert_eq!(
            errors(&with(small)),
            ["-Xms1g is more than the heap may become, 768MiB by limits.memory: no JVM starts so"]
        );
        service(&with("limits.memory = '1GiB'\njava.options = ['-Xms768m']"));
        service(&with("java.options = ['-Xms768m']"));
        let other = "kind = 'command'\ncommand = ['a']\njava.home = '/opt/jdk'";
        assert_eq!(helps(other), ["the variable JAVA_HOME can be set in [environment]"]);
    }

    #[test]
    fn sizes_as_a_jvm_reads_them() {
        let all = ["1024", "1k", "2M", "3g", "1T", "", "x", "9999999t"].map(bytes);
        let gib = 1u64 << 30;
        let known = [1024, 1024, 2 << 20, 3 * gib, 1024 * gib].map(Some);
        assert_eq!((&all[..5], &all[5..7]), (&known[..], &[None, None][..]));
    }
}
