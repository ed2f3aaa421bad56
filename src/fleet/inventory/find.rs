//! Where the fleet file is.

use std::path::{Path, PathBuf};

use crate::config::check_name;

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    #[error("There is no {file} in {} or above it.", .from.display())]
    Nowhere { file: String, from: PathBuf },
    #[error("{name:?} cannot be an environment: {why}.")]
    Name { name: String, why: &'static str },
}

/// `fleet.toml`, or `fleet.ENVIRONMENT.toml`, in `from` or the nearest directory above that has one.
///
/// # Errors
/// [`NotFound`].
pub fn find(from: &Path, environment: Option<&str>) -> Result<PathBuf, NotFound> {
    let file = match environment {
        None => "fleet.toml".to_owned(),
        Some(name) => match check_name(name) {
            Ok(()) => format!("fleet.{name}.toml"),
            Err(why) => return Err(NotFound::Name { name: name.to_owned(), why }),
        },
    };
    let found = from.ancestors().map(|dir| dir.join(&file)).find(|path| path.symlink_metadata().is_ok());
    found.ok_or_else(|| NotFound::Nowhere { file, from: from.to_path_buf() })
}
