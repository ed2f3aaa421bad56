//! The directories of one svd, and the files that it makes in them.

use crate::config::spec::Config;
use crate::config::{self, Diagnostics};
use crate::sys::trust::{self, Rule};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct Paths {
    /// `svd.toml` and `conf.d`.
    pub config: PathBuf,
    /// Gone at boot, like the processes.
    pub run: PathBuf,
    /// Survives the boot.
    pub state: PathBuf,
    pub log: PathBuf,
}

/// svd's own journals are renamed at this size; one older file is kept of each.
pub const JOURNAL_BYTES: u64 = 16 << 20;

/// The older file of a journal: `svd.log.1`.
pub fn older(journal: &Path) -> PathBuf {
    let mut name = journal.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

impl Paths {
    /// Makes the directories that are missing. None may be such that others could put something in the place of what svd
    /// writes there: as root it would write, through a link for instance, wherever they want.
    ///
    /// # Errors
    /// A sentence: which one, why, and what to do.
    pub fn create(&self) -> Result<(), String> {
        for dir in [&self.run, &self.state, &self.log, &self.pipes(), &self.notify(), &self.stubs()] {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(|e| {
                let why = crate::sys::io_text(&e);
                format!("cannot make the directory {}: {why}", dir.display())
            })?;
            let rule = if dir == &self.log { Rule::Logs } else { Rule::Strict };
            trust::path(dir, rule).map_err(|e| {
                let help = e.help().map(|help| format!(" (`{help}`)")).unwrap_or_default();
                format!("{} is not used: {e}; make it root's, or that of svd's user, alone{help}", dir.display())
            })?;
        }
        // A service's user must reach its pipes and its notify socket, but not list what else is there.
        let dirs = [(&self.run, 0o755), (&self.pipes(), 0o711), (&self.notify(), 0o711), (&self.stubs(), 0o700)];
        for (dir, mode) in dirs {
            if fs::metadata(dir).is_ok_and(|meta| meta.mode() & 0o7777 == mode) {
                continue;
            }
            fs::set_permissions(dir, fs::Permissions::from_mode(mode))
                .map_err(|e| format!("cannot set the mode of {}: {}", dir.display(), crate::sys::io_text(&e)))?;
        }
        Ok(())
    }

    /// Reads the configuration, unless somebody else could change it: it says what svd does.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(&self) -> Result<Config, Diagnostics> {
        self.load_as_if(None)
    }

    /// As [`Paths::load`], as if the file of this service said this.
    ///
    /// # Errors
    /// As of [`Paths::load`].
    pub fn load_as_if(&self, instead: Option<(&str, &str)>) -> Result<Config, Diagnostics> {
        let mut errors = config::distrusted(&self.config, trust::in_words);
        let loaded = match instead {
            Some((service, text)) => config::load_with(&self.config, service, text),
            None => config::load(&self.config),
        };
        if errors.is_empty() {
            return loaded;
        }
        errors.extend(loaded.err().into_iter().flat_map(|others| others.0));
        Err(Diagnostics(errors))
    }

    pub fn service_file(&self, name: &str) -> PathBuf {
        self.config.join("conf.d").join(format!("{name}.toml"))
    }

    pub fn socket(&self) -> PathBuf {
        self.run.join("svd.sock")
    }

    /// The lock, which serves as the pid file.
    pub fn pid_file(&self) -> PathBuf {
        self.run.join("svd.pid")
    }

    /// What the next svd is to know should this one be killed.
    pub fn state_file(&self) -> PathBuf {
        self.run.join("state")
    }

    /// What the log thread has begun.
    pub fn in_flight(&self) -> PathBuf {
        self.run.join("logs.inflight")
    }

    pub fn pipes(&self) -> PathBuf {
        self.run.join("pipes")
    }

    pub fn notify(&self) -> PathBuf {
        self.run.join("notify")
    }

    /// Where stubs are reached; svd's alone.
    pub fn stubs(&self) -> PathBuf {
        self.run.join("stubs")
    }

    pub fn launcher(&self) -> PathBuf {
        self.run.join(crate::kinds::gunicorn::LAUNCHER_NAME)
    }

    pub fn services_file(&self) -> PathBuf {
        self.state.join("services.json")
    }

    /// The ids of services with a user of their own.
    pub fn users_file(&self) -> PathBuf {
        self.state.join("users.json")
    }

    /// The homes of these users.
    pub fn homes(&self) -> PathBuf {
        self.state.join("homes")
    }

    pub fn audit_file(&self) -> PathBuf {
        self.state.join("audit.log")
    }

    /// What is known of each app's releases.
    pub fn apps(&self) -> PathBuf {
        self.state.join("apps")
    }

    pub fn app_file(&self, app: &str) -> PathBuf {
        self.apps().join(format!("{app}.json"))
    }

    pub fn app_history(&self, app: &str) -> PathBuf {
        self.apps().join(format!("{app}.history"))
    }

    /// What whoever drives the latest rollout has written down.
    pub fn app_journal(&self, app: &str) -> PathBuf {
        self.apps().join(format!("{app}.journal"))
    }

    /// Output of the steps of its deploys.
    pub fn app_output(&self, app: &str) -> PathBuf {
        self.apps().join(format!("{app}.output"))
    }

    /// Configurations that its releases have served with.
    pub fn app_configurations(&self, app: &str) -> PathBuf {
        self.apps().join(format!("{app}.configurations"))
    }

    /// Where a user's files for an app arrive; the user's own.
    pub fn staging(&self, uid: u32, app: &str) -> PathBuf {
        self.state.join("staging").join(uid.to_string()).join(app)
    }

    /// svd's own messages when it runs as a daemon.
    pub fn own_log(&self) -> PathBuf {
        self.log.join("svd.log")
    }

    /// Names what is this svd's alone, even where another's run directory is called the same in another mount namespace.
    ///
    /// # Errors
    /// A sentence.
    pub fn own_id(&self) -> Result<String, String> {
        let meta = fs::metadata(&self.run);
        let meta = meta.map_err(|e| format!("cannot look at {}: {}", self.run.display(), crate::sys::io_text(&e)))?;
        Ok(format!("{}-{:x}-{:x}", self.id(), meta.dev(), meta.ino()))
    }

    /// Names this svd's cgroups: the run directory, so that two of them do not meet.
    pub fn id(&self) -> String {
        let text = self.run.to_string_lossy();
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325; // FNV-1a: short, and stable across builds
        for byte in text.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        format!("{hash:016x}")
    }
}

/// `path`, from the working directory on where it is relative.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
