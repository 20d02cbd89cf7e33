//! Which config.yaml is read, and the world it is read in. The one file of `config` that touches
//! the file system and the process's environment.

use std::path::Path;
use std::path::PathBuf;

use super::Config;
use super::Environment;
use super::Mistakes;
use super::files::profiled;

/// Reads `file` (`-c FILE`), or else `conf/config.yaml` below the working directory, with
/// `APISIX_PROFILE` `conf/config-<profile>.yaml`. Called anew on HUP.
///
/// # Errors
/// That the file cannot be read, or every mistake in it.
pub fn load(file: Option<&Path>) -> Result<Config, Mistakes> {
    load_in(&Environment::of_process(), file)
}

/// As [`load`], in the world that `env` describes.
pub(super) fn load_in(env: &Environment, file: Option<&Path>) -> Result<Config, Mistakes> {
    let file =
        file.map_or_else(|| Path::new("conf").join(profiled("config", "yaml", env)), Path::to_path_buf);
    let path = env.cwd.join(&file);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::NotFound => "; name another with -c FILE",
            std::io::ErrorKind::InvalidData => "; it must be UTF-8",
            _ => "",
        };
        Mistakes::one(path.display().to_string(), format!("cannot be read: {error}{advice}"))
    })?;
    Config::from_text(&text, &path, env)
}

impl Environment {
    /// The world of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            vars: std::env::vars_os().filter_map(text).collect(),
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            exists: |path| path.exists(),
            read: |path| std::fs::read_to_string(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Source;

    const CONFIG: &str = "apisix: {proxy_mode: stream, stream_proxy: {tcp: [9100]}}\n\
        deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n";

    fn source(config: Result<Config, Mistakes>) -> PathBuf {
        match config.unwrap().source {
            Source::File(path) => path,
            Source::Etcd(_) => panic!("etcd"),
        }
    }

    #[test]
    fn the_file_is_found_as_apisix_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path();
        fs::create_dir(home.join("conf")).unwrap();
        fs::write(home.join("conf/config.yaml"), CONFIG).unwrap();
        fs::write(home.join("conf/config-dev.yaml"), CONFIG).unwrap();
        fs::write(home.join("other.yaml"), CONFIG).unwrap();
        let mut env = Environment { cwd: home.into(), ..Environment::default() };
        assert_eq!(source(load_in(&env, None)), home.join("conf/apisix.yaml"));
        assert_eq!(source(load_in(&env, Some(Path::new("other.yaml")))), home.join("apisix.yaml"));
        env.vars.insert("APISIX_PROFILE".into(), "dev".into());
        assert_eq!(source(load_in(&env, None)), home.join("conf/apisix-dev.yaml"));
        fs::remove_file(home.join("conf/config-dev.yaml")).unwrap();
        let told = load_in(&env, None).unwrap_err().to_string();
        assert!(told.contains("config-dev.yaml: cannot be read") && told.ends_with("-c FILE"), "{told}");
    }

    #[test]
    fn the_process_has_a_world() {
        let env = Environment::of_process();
        assert!(env.cores > 0 && env.cwd.is_absolute() && (env.exists)(&env.cwd));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "text").unwrap();
        assert_eq!((env.read)(file.path()).unwrap(), "text");
    }
}
