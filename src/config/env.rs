//! `${{VAR}}` and `${{VAR:=default}}` in config.yaml, replaced after the YAML is parsed.
//!
//! The rules are those of `apisix/cli/file.lua:60-156`: in texts and in keys of maps, several to a
//! text; a text that had one becomes a number or a boolean where it then looks like one, quotes in
//! the YAML or not. A variable set to the empty text counts as set.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Map;
use serde_json::Value;

use super::report::Report;
use super::report::entry_path;
use super::report::item_path;
use super::variables::{self, Reference};

/// All that reading a configuration asks of the world around it.
#[derive(Clone)]
pub struct Environment {
    /// Environment variables.
    pub vars: BTreeMap<String, String>,
    /// The working directory.
    pub cwd: PathBuf,
    /// What `worker_processes: auto` means.
    pub cores: usize,
    /// Whether there is a file.
    pub exists: fn(&Path) -> bool,
    /// The text of a file.
    pub read: fn(&Path) -> io::Result<String>,
}

impl Environment {
    /// A variable.
    pub(super) fn var(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str)
    }
}

/// An empty world for tests: no variables, `/`, one core, every file exists and is empty.
impl Default for Environment {
    fn default() -> Self {
        Self {
            vars: BTreeMap::new(),
            cwd: "/".into(),
            cores: 1,
            exists: |_| true,
            read: |_| Ok(String::new()),
        }
    }
}

/// Without the values: they may be passwords.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.vars.keys().collect();
        f.debug_struct("Environment")
            .field("vars", &names)
            .field("cwd", &self.cwd)
            .field("cores", &self.cores)
            .finish_non_exhaustive()
    }
}

/// The environment variables of the process, as `$env://` references in objects see them. Clones
/// share them.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Variables(Arc<BTreeMap<String, String>>);

impl Variables {
    /// Names with their values.
    #[must_use]
    pub fn new(vars: BTreeMap<String, String>) -> Self {
        Self(Arc::new(vars))
    }

    /// The value of a variable; `None` where it is not set.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// How many there are: names and values may both be secrets.
impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Variables({})", self.0.len())
    }
}

/// Replaces every reference in `value`; a variable that is not set and has no default is a mistake.
pub(super) fn substitute(value: Value, path: &str, env: &Environment, report: &Report) -> Value {
    match value {
        Value::String(text) => match replaced(&text, path, env, report) {
            Some(replaced) => variables::typed(replaced),
            None => Value::String(text),
        },
        Value::Array(list) => list
            .into_iter()
            .enumerate()
            .map(|(at, item)| substitute(item, &item_path(path, at), env, report))
            .collect(),
        Value::Object(map) => {
            let mut renamed = Map::with_capacity(map.len());
            for (key, value) in map {
                let key = replaced(&key, path, env, report).unwrap_or(key);
                let value = substitute(value, &entry_path(path, &key), env, report);
                if renamed.insert(key.clone(), value).is_some() {
                    report.mistake(&entry_path(path, &key), "stands twice after its variables are replaced");
                }
            }
            Value::Object(renamed)
        }
        other => other,
    }
}

/// The text with its references replaced; `None` where there are none.
fn replaced(text: &str, path: &str, env: &Environment, report: &Report) -> Option<String> {
    match variables::replace_all(text, |reference| resolve(reference, path, env, report)) {
        Cow::Borrowed(_) => None,
        Cow::Owned(replaced) => Some(replaced),
    }
}

fn resolve(reference: Reference<'_>, path: &str, env: &Environment, report: &Report) -> String {
    let Reference { name, default, .. } = reference;
    let set = env.var(name);
    if reference.blank && set.is_some() {
        report.warn(
            path,
            format!("`{name}` has a blank before `:=`: streamgate takes the variable, APISIX the default"),
        );
    }
    let value = set.or(default).unwrap_or_else(|| {
        let sentence =
            format!("can't find environment variable {name}; set it, or write `${{{{{name}:=default}}}}`");
        report.mistake(path, sentence);
        ""
    });
    value.to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn world() -> Environment {
        let vars = [
            ("PORT", "9100"),
            ("HEX", "0x10"),
            ("EXP", " 1e3 "),
            ("NO", "false"),
            ("EMPTY", ""),
            ("NAME", "db"),
        ];
        let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Environment { vars, ..Environment::default() }
    }

    #[track_caller]
    fn check(written: Value, expected: &Value) {
        let report = Report::default();
        assert_eq!(&substitute(written, "", &world(), &report), expected);
        report.close(&Value::Null).unwrap();
    }

    #[test]
    fn references_become_what_apisix_makes_of_them() {
        check(json!("${{PORT}}"), &json!(9100));
        check(json!("127.0.0.1:${{ PORT }}"), &json!("127.0.0.1:9100"));
        check(json!("${{HEX}}"), &json!(16));
        check(json!("${{EXP}}"), &json!(1000.0));
        check(json!("${{NO}}"), &json!(false));
        check(json!("${{EMPTY}}"), &json!(""));
        check(json!("${{EMPTY:=x}}"), &json!(""));
        check(json!("${{NONE:= a b }}"), &json!("a b"));
        check(json!("${{NONE := 5}}"), &json!(5));
        check(json!("${{NONE:=}}"), &json!(""));
        check(json!("${{NAME}}-${{NAME}}"), &json!("db-db"));
        check(json!("${{NONE:=-1.5}}"), &json!(-1.5));
        check(json!("${{NONE:=1.2.3.4}}"), &json!("1.2.3.4"));
        check(json!("${{NONE:=inf}}"), &json!("inf"));
        check(json!({"${{NAME}}_x": ["${{PORT}}"]}), &json!({"db_x": [9100]}));
    }

    #[test]
    fn what_is_no_reference_is_kept() {
        check(json!("9100"), &json!("9100"));
        check(json!("${{}} ${{ }} ${NAME} $NAME ${{NAME"), &json!("${{}} ${{ }} ${NAME} $NAME ${{NAME"));
        check(json!("${{${{NAME}}"), &json!("${{db"));
    }

    #[test]
    fn a_missing_variable_is_a_mistake_with_its_path() {
        let report = Report::default();
        substitute(json!({"a": [{"b": "x${{NONE}}"}], "c": "${{OTHER}}"}), "", &world(), &report);
        let told = report.close(&Value::Null).unwrap_err().to_string();
        assert_eq!(
            told,
            "a[0].b: can't find environment variable NONE; set it, or write `${{NONE:=default}}`\n\
             c: can't find environment variable OTHER; set it, or write `${{OTHER:=default}}`"
        );
    }

    #[test]
    fn a_blank_before_the_default_is_pointed_out() {
        let report = Report::default();
        assert_eq!(substitute(json!("${{ PORT := 1 }}"), "a", &world(), &report), json!(9100));
        let warnings = report.close(&Value::Null).unwrap();
        assert!(warnings[0].contains("APISIX the default"), "{warnings:?}");
    }
}
