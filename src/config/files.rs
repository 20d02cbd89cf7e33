//! Where the paths of a configuration lead, as in APISIX.
//!
//! Its prefix is the folder above `conf/`; most relative paths start there, that of
//! `ssl_trusted_certificate` at the working directory (`apisix/cli/file.lua:332-352`), and the file of
//! the objects lies next to config.yaml.

use std::path::Path;
use std::path::PathBuf;

use super::Environment;
use super::read::Node;

/// The folders of one configuration.
#[derive(Debug)]
pub(super) struct Files<'e> {
    /// Where config.yaml lies.
    pub(super) conf: PathBuf,
    /// Above it where it is called `conf`, else the same.
    pub(super) prefix: PathBuf,
    /// The world around.
    pub(super) env: &'e Environment,
}

impl<'e> Files<'e> {
    /// The folders around the config.yaml at `file`.
    pub(super) fn around(file: &Path, env: &'e Environment) -> Self {
        let file = env.cwd.join(file);
        let conf = file.parent().unwrap_or(&env.cwd).to_path_buf();
        let above = conf.parent().filter(|_| conf.ends_with("conf"));
        Self { prefix: above.unwrap_or(&conf).to_path_buf(), conf, env }
    }

    /// `stem.ending`, or with `APISIX_PROFILE` `stem-profile.ending`.
    pub(super) fn profiled(&self, stem: &str, ending: &str) -> String {
        profiled(stem, ending, self.env)
    }

    /// The path written at `node`, taken from `base`; that there is no such file is a mistake.
    pub(super) fn existing(&self, node: &Node<'_>, base: &Path) -> Option<PathBuf> {
        let path = base.join(node.string()?);
        if (self.env.exists)(&path) {
            return Some(path);
        }
        node.mistake(format!("there is no file {}", path.display()));
        None
    }
}

/// `stem.ending`, or with `APISIX_PROFILE` `stem-profile.ending` (`apisix/core/profile.lua:43-50`).
pub(super) fn profiled(stem: &str, ending: &str, env: &Environment) -> String {
    match env.var("APISIX_PROFILE") {
        Some(profile) if !profile.is_empty() => format!("{stem}-{profile}.{ending}"),
        _ => format!("{stem}.{ending}"),
    }
}
