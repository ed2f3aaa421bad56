//! Commands with secrets in them: what is run, and what people may read of it.

/// The words of a command, each with the text that stands for it in outputs, errors and journals: there, variables of svd's own
/// environment (`{env.TOKEN}`) stay as the file has them, as they are where secrets come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Argv {
    words: Vec<String>,
    shown: Vec<String>,
}

impl Argv {
    /// `shown`: as many.
    pub fn new(words: Vec<String>, shown: Vec<String>) -> Argv {
        debug_assert_eq!(words.len(), shown.len());
        Argv { words, shown }
    }

    /// For the kernel.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// For people.
    pub fn shown(&self) -> String {
        self.shown.join(" ")
    }

    /// What somebody says of the command (that a program is not there), as it may be shown.
    pub fn hide(&self, text: &str) -> String {
        let secret = self.words.iter().zip(&self.shown).filter(|(word, shown)| word != shown && !word.is_empty());
        secret.fold(text.to_owned(), |text, (word, shown)| text.replace(word, shown))
    }
}

/// Nothing in it is anybody's secret.
impl From<Vec<String>> for Argv {
    fn from(words: Vec<String>) -> Argv {
        Argv { shown: words.clone(), words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_not_what_is_run() {
        let words = |words: [&str; 3]| words.map(str::to_owned).to_vec();
        let argv = Argv::new(words(["/opt/s3cret/run", "-v", ""]), words(["{env.HOME}/run", "-v", "{env.NONE}"]));
        assert_eq!(argv.words(), ["/opt/s3cret/run", "-v", ""]);
        assert_eq!(argv.shown(), "{env.HOME}/run -v {env.NONE}");
        assert_eq!(
            argv.hide("cannot execute /opt/s3cret/run: No such file"),
            "cannot execute {env.HOME}/run: No such file"
        );
        assert_eq!(Argv::from(vec!["a".to_owned(), "b".to_owned()]).shown(), "a b");
    }
}
