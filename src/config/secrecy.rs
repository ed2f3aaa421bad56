//! What must not be shown of a configuration: values that are secrets by their names, and passwords in addresses.

/// Stands for what is not shown.
pub const HIDDEN: &str = "(hidden)";

/// Words that make a name one of a secret.
const WORDS: &[&str] = &[
    "APIKEY",
    "AUTH",
    "AUTHORIZATION",
    "COOKIE",
    "CREDENTIAL",
    "CREDENTIALS",
    "DSN",
    "KEY",
    "KEYS",
    "PASS",
    "PASSPHRASE",
    "PASSWD",
    "PASSWORD",
    "PRIVATE",
    "SALT",
    "SECRET",
    "SECRETS",
    "TOKEN",
    "TOKENS",
];
/// As parts of words (`DBPASSWORD`).
const PARTS: &[&str] = &["APIKEY", "PASSWORD", "PASSWD", "SECRET", "TOKEN"];
/// A name that ends so has a path.
const PLACES: &[&str] = &["DIR", "FILE", "PATH"];

/// Is the value of a variable, header or option of this name not for everybody?
pub fn is_secret(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let words: Vec<&str> = upper.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.iter().any(|word| WORDS.contains(word) || PARTS.iter().any(|part| word.contains(part)))
}

/// The value of `key` (`environment.API_TOKEN`) as it may be shown: placeholders stay, as what they stand for is not in them.
pub fn shown(key: &str, value: &str) -> Box<str> {
    let name = ["environment.", ".headers."].iter().find_map(|part| Some(key.split_once(part)?.1));
    if let Some(name) = name {
        return variable(name, value).into();
    }
    match serde_json::from_str::<Vec<String>>(value) {
        Ok(words) => format!("{:?}", arguments(&words)).into(),
        Err(_) => without_passwords(value).into(),
    }
}

/// The value of a variable or header.
pub fn variable(name: &str, value: &str) -> String {
    let upper = name.to_ascii_uppercase();
    let is_place = PLACES.iter().any(|end| upper.ends_with(end)) && value.starts_with(['/', '{']);
    let hidden = is_secret(name) && !is_place && !value.is_empty() && !is_placeholder(value);
    if hidden { HIDDEN.to_owned() } else { without_passwords(value) }
}

/// Of a command line: `--token=X`, `--token X` and `-Ddb.password=X`.
pub fn arguments(words: &[String]) -> Vec<String> {
    let mut out = Vec::with_capacity(words.len());
    let mut follows = false;
    for word in words {
        let option = word.starts_with('-').then_some(word.as_str());
        out.push(match option.and_then(|option| option.split_once('=')) {
            Some((name, value)) => format!("{name}={}", variable(name, value)),
            None if follows && option.is_none() && !is_placeholder(word) => HIDDEN.to_owned(),
            None => without_passwords(word),
        });
        follows = option.is_some_and(|option| !option.contains('=') && is_secret(option));
    }
    out
}

/// One placeholder, and nothing beside it.
fn is_placeholder(value: &str) -> bool {
    value.starts_with('{') && !value.starts_with("{{") && value.find('}') == Some(value.len() - 1)
}

/// `postgres://app:geheim@db/app` without the password.
fn without_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let authority = after.find(['/', '?', '#', ' ', '"', '\'', ',']).unwrap_or(after.len());
        let login = after[..authority].rfind('@').map(|end| &after[..end]);
        rest = match login.and_then(|login| Some((login, login.split_once(':')?))) {
            Some((login, (user, password))) if !is_placeholder(password) => {
                out.push_str(&format!("{user}:{HIDDEN}"));
                &after[login.len()..]
            }
            _ => after,
        };
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets() {
        for name in [
            "SECRET_KEY",
            "DB_PASSWORD",
            "AWS_SECRET_ACCESS_KEY",
            "DBPASSWORD",
            "X-Api-Key",
            "Authorization",
            "githubToken",
            "SENTRY_DSN",
            "-Ddb.password",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["KEYBOARD", "TZ", "DJANGO_SETTINGS_MODULE", "PATH", "PWD", "COMPASS", "AUTHOR", "MONKEY"] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn values_that_may_be_seen() {
        let shown = |key: &str, value: &str| super::shown(key, value).into_string();
        assert_eq!(shown("environment.API_TOKEN", "abc"), HIDDEN);
        assert_eq!(shown("environment.API_TOKEN", "{env.API_TOKEN}"), "{env.API_TOKEN}");
        assert_eq!(shown("environment.API_TOKEN", "{env.A}b}"), HIDDEN);
        assert_eq!(shown("environment.API_TOKEN", ""), "");
        assert_eq!(shown("environment.TLS_KEY_FILE", "/etc/key.pem"), "/etc/key.pem");
        assert_eq!(shown("environment.TZ", "UTC"), "UTC");
        assert_eq!(shown("ready.probe.headers.Authorization", "Basic eA=="), HIDDEN);
        assert_eq!(shown("environment.DATABASE_URL", "postgres://app:a@b:c@db/x"), "postgres://app:(hidden)@db/x");
        assert_eq!(shown("environment.DATABASE_URL", "postgres://app:{env.P}@db/x"), "postgres://app:{env.P}@db/x");
        assert_eq!(shown("environment.URLS", "http://a/ http://u:p@b/ x@y"), "http://a/ http://u:(hidden)@b/ x@y");
        assert_eq!(
            shown(
                "command",
                r#"["a", "--token", "x", "--password=y", "-Ddb.password=z", "redis://:p@h", "--key", "--v"]"#
            ),
            r#"["a", "--token", "(hidden)", "--password=(hidden)", "-Ddb.password=(hidden)", "redis://:(hidden)@h", "--key", "--v"]"#
        );
        assert_eq!(shown("kind", "gunicorn"), "gunicorn");
    }
}
