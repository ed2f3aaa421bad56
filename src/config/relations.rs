//! What only shows when all services are known: who requires whom, and who takes whose address.

use std::collections::HashMap;

use super::service::Decoded;
use super::sockets;
use super::source::{Problem, Span};
use super::spec::Listen;
use super::suggest;

/// Files by index, services in the order of their names; `report` gets the index of the file that is wrong.
pub(super) struct Relations<'r> {
    pub services: &'r [Decoded],
    /// Every name for which there is a file, readable or not, sorted.
    pub names: &'r [&'r str],
    /// `[http] listen` of `svd.toml`, and how messages name the place.
    pub http: Option<(Listen, String)>,
    /// `FILE:LINE:COLUMN` of a place in a service's file.
    pub locate: &'r dyn Fn(usize, Span) -> String,
    pub report: &'r dyn Fn(usize, Problem),
}

impl Relations<'_> {
    pub fn check(&self) {
        self.requirements();
        self.circles();
        self.addresses();
    }

    fn requirements(&self) {
        for (index, decoded) in self.services.iter().enumerate() {
            for (name, span) in decoded.service.requires.iter().zip(&decoded.requires) {
                if self.names.binary_search(&&**name).is_ok() {
                    continue;
                }
                let problem = Problem::new(*span, format!("no service is called {name:?}"));
                (self.report)(
                    index,
                    match suggest::closest(name, self.names.iter().copied()) {
                        Some(near) => problem.help(format!("did you mean {near:?}?")),
                        None => problem.help(format!(
                            "add conf.d/{name}.toml, or use \"after\", which ignores names that svd does not know"
                        )),
                    },
                );
            }
        }
    }

    /// Each circle of `requires` and `after` once, where its first service closes it.
    fn circles(&self) {
        let index: HashMap<&str, usize> =
            self.services.iter().enumerate().map(|(i, d)| (&*d.service.name, i)).collect();
        let edges: Vec<Vec<Edge>> = self.services.iter().map(|decoded| edges(decoded, &index)).collect();
        let mut search = Search { edges: &edges, state: vec![State::New; edges.len()], path: Vec::new() };
        for start in 0..edges.len() {
            search.from(start, &mut |circle| self.report_circle(circle));
        }
    }

    /// `circle`: each service with the place where it names the next.
    fn report_circle(&self, circle: &[Edge]) {
        let name = |i: usize| &*self.services[i].service.name;
        // The same circle reads the same wherever the search met it: from its first name on.
        let first = (0..circle.len()).min_by_key(|&i| circle[i].0).unwrap_or(0);
        let turned: Vec<_> = circle[first..].iter().chain(&circle[..first]).collect();
        let (at, span) = *turned[0];
        let mut names: Vec<_> = turned.iter().map(|(i, _)| name(*i)).collect();
        names.push(name(at));
        let message = match turned.len() {
            1 => format!("{} waits for itself", name(at)),
            _ => format!("the services wait for each other in a circle: {}", names.join(" → ")),
        };
        (self.report)(at, Problem::new(span, message).help("remove one of these from \"requires\" or \"after\""));
    }

    fn addresses(&self) {
        // Only equal ports and equal paths can collide.
        let mut taken: HashMap<Key<'_>, Vec<(&Listen, String)>> = HashMap::new();
        if let Some((listen, place)) = &self.http {
            taken.entry(key(listen)).or_default().push((listen, place.clone()));
        }
        for (index, decoded) in self.services.iter().enumerate() {
            for (socket, span) in decoded.service.sockets.iter().zip(&decoded.sockets) {
                let others = taken.entry(key(&socket.listen)).or_default();
                if let Some((other, place)) = others.iter().find(|(other, _)| sockets::collide(other, &socket.listen)) {
                    let address = sockets::show(&socket.listen);
                    let message = match **other == socket.listen {
                        true => format!("{address:?} is taken already, by {place}"),
                        false => format!("{address:?} collides with {:?} of {place}", sockets::show(other)),
                    };
                    (self.report)(index, Problem::new(*span, message).help("give each socket an address of its own"));
                }
                others.push((&socket.listen, self.place(index, &socket.name, *span)));
            }
        }
    }

    fn place(&self, index: usize, socket: &str, span: Span) -> String {
        format!("[sockets.{socket}] at {}", (self.locate)(index, span))
    }
}

#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Port(u16),
    Path(&'a std::path::Path),
}

fn key(listen: &Listen) -> Key<'_> {
    match listen {
        Listen::Tcp(address) => Key::Port(address.port()),
        Listen::Unix { path, .. } => Key::Path(path),
    }
}

/// One end of a wish to wait, and where it is written.
type Edge = (usize, Span);

/// Whom a service waits for, and where it says so.
fn edges(decoded: &Decoded, index: &HashMap<&str, usize>) -> Vec<Edge> {
    let requires = decoded.service.requires.iter().zip(&decoded.requires);
    let after = decoded.service.after.iter().zip(&decoded.after);
    requires.chain(after).filter_map(|(name, span)| Some((*index.get(&**name)?, *span))).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    New,
    OnPath,
    Done,
}

/// Depth-first, with a path of its own instead of the stack: chains may be long.
struct Search<'e> {
    edges: &'e [Vec<Edge>],
    state: Vec<State>,
    /// Services from the start to here, each with the number of its next edge.
    path: Vec<(usize, usize)>,
}

impl Search<'_> {
    fn from(&mut self, start: usize, found: &mut dyn FnMut(&[Edge])) {
        if self.state[start] != State::New {
            return;
        }
        self.enter(start);
        while let Some((node, next)) = self.path.last_mut() {
            let node = *node;
            let Some(&(to, _)) = self.edges[node].get(*next) else {
                self.state[node] = State::Done;
                self.path.pop();
                continue;
            };
            *next += 1;
            match self.state[to] {
                State::New => self.enter(to),
                State::OnPath => {
                    let from = self.path.iter().position(|(n, _)| *n == to).unwrap_or(0);
                    let circle: Vec<_> =
                        self.path[from..].iter().map(|&(n, taken)| (n, self.edges[n][taken - 1].1)).collect();
                    found(&circle);
                }
                State::Done => {}
            }
        }
    }

    fn enter(&mut self, node: usize) {
        self.state[node] = State::OnPath;
        self.path.push((node, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::super::load_texts;

    fn files(list: &[(&str, &str)]) -> Vec<String> {
        let texts: Vec<_> =
            list.iter().map(|(name, rest)| (*name, format!("kind = 'command'\ncommand = ['a']\n{rest}"))).collect();
        let texts: Vec<_> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
        match load_texts(Some("[http]\nlisten = '127.0.0.1:9010'"), &texts) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.0.into_iter().map(|d| format!("{}: {}", d.file, d.message)).collect(),
        }
    }

    #[test]
    fn circles_are_named_once() {
        let three =
            [("a", "requires = ['b']"), ("b", "after = ['c']"), ("c", "requires = ['a']"), ("d", "after = ['a']")];
        let message = "conf.d/a.toml: the services wait for each other in a circle: a → b → c → a";
        assert_eq!(files(&three), [message]);
        assert_eq!(files(&[("a", "after = ['a']")]), ["conf.d/a.toml: a waits for itself"]);
        let two = [("a", "after = ['b']"), ("b", "after = ['a', 'c']"), ("c", "after = ['b']")];
        assert_eq!(files(&two).len(), 2);
    }

    #[test]
    fn what_is_no_circle_is_fine() {
        let diamond = [
            ("a", "after = ['b', 'c']"),
            ("b", "requires = ['d']"),
            ("c", "requires = ['d']"),
            ("d", "after = ['unknown']"),
        ];
        assert_eq!(files(&diamond), [""; 0]);
    }

    #[test]
    fn long_chains_do_not_overflow() {
        let names: Vec<String> = (0..20_000).map(|i| format!("s{i:05}")).collect();
        let texts: Vec<_> = (0..20_000)
            .map(|i| format!("kind = 'command'\ncommand = ['a']\nafter = ['s{:05}']", (i + 1) % 20_000))
            .collect();
        let files: Vec<_> = names.iter().zip(&texts).map(|(n, t)| (n.as_str(), t.as_str())).collect();
        assert_eq!(load_texts(None, &files).unwrap_err().0.len(), 1);
    }

    #[test]
    fn requirements_must_exist() {
        let errors = files(&[("redis", ""), ("web", "requires = ['redsi', 'redis']")]);
        assert_eq!(errors, ["conf.d/web.toml: no service is called \"redsi\""]);
    }

    #[test]
    fn a_file_with_errors_is_a_service_nevertheless() {
        let errors = files(&[("redis", "wrong = 1"), ("web", "requires = ['redis']")]);
        assert_eq!(errors.len(), 1);
    }

    #[test]
    fn addresses_are_taken_once() {
        let socket = |address: &str| format!("[sockets.x]\nlisten = '{address}'");
        for (a, b, collide) in [
            ("1.2.3.4:80", "1.2.3.4:80", true),
            ("0.0.0.0:80", "1.2.3.4:80", true),
            ("1.2.3.4:80", "1.2.3.5:80", false),
            ("0.0.0.0:80", "0.0.0.0:81", false),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "[::1]:80", true),
            ("unix:/a", "unix:/a", true),
            ("unix:/a", "unix:/b", false),
            ("127.0.0.1:9010", "127.0.0.1:1", true),
        ] {
            let errors = files(&[("a", &socket(a)), ("b", &socket(b))]);
            assert_eq!(errors.len(), usize::from(collide), "{a} {b}: {errors:?}");
        }
        let within = "[sockets.x]\nlisten = '1.1.1.1:1'\n[sockets.y]\nlisten = '1.1.1.1:1'";
        assert_eq!(
            files(&[("a", within)]),
            ["conf.d/a.toml: \"1.1.1.1:1\" is taken already, by [sockets.x] at conf.d/a.toml:4:10"]
        );
    }
}
