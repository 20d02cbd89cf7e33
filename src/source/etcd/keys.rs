//! The keys that are ours: those below `{prefix}/`, and how far they were read.

use crate::live::source_status::SourceStatus;
use crate::resource::Key;

/// `deployment.etcd.prefix` with its slash. Exactly this range is asked for: a role that may read
/// no more is enough.
#[derive(Clone, Debug)]
pub(super) struct Prefix(String);

impl Prefix {
    /// `prefix` is taken as it is written.
    pub(super) fn new(prefix: &str) -> Self {
        Self(format!("{prefix}/"))
    }

    /// The first key of the range.
    pub(super) fn start(&self) -> &str {
        &self.0
    }

    /// The first key behind the range: `0` follows `/`.
    pub(super) fn end(&self) -> String {
        format!("{}0", self.0.strip_suffix('/').unwrap_or(&self.0))
    }

    /// The object of an etcd key; `None` for what is not ours.
    pub(super) fn object(&self, key: &[u8]) -> Option<Key> {
        Key::from_path(self.path(key)?)
    }

    /// Counts the write of a key for `apisix_etcd_modify_indexes`; HTTP objects are in it.
    pub(super) fn note(&self, status: &SourceStatus, key: &[u8], revision: i64) {
        if let Some((directory, id)) = self.path(key).and_then(|path| path.split_once('/'))
            && !id.is_empty()
        {
            status.modify(directory, revision);
        }
    }

    fn path<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        str::from_utf8(key).ok()?.strip_prefix(&self.0)
    }
}

/// Up to where changes were handed on, and how to tell that etcd still has the same history.
#[derive(Clone, Debug)]
pub(super) struct Position {
    /// The cluster that counted the revision.
    pub(super) cluster: u64,
    /// Everything up to it was handed on.
    pub(super) revision: i64,
    /// A cluster that was emptied or restored from a backup often keeps its id and may have
    /// passed `revision` again; that the last key we saw was then written at the same revision is
    /// beyond chance.
    pub(super) witness: Witness,
}

/// What a key was at a [`Position`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Witness {
    /// Below the prefix.
    pub(super) key: Vec<u8>,
    /// The revision it was written at; 0: it did not exist.
    pub(super) modified: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(prefix: &str, key: &str, expected: Option<&str>) {
        let found = Prefix::new(prefix).object(key.as_bytes()).map(|key| key.to_string());
        assert_eq!(found.as_deref(), expected, "{key} below {prefix}");
    }

    #[test]
    fn only_objects_below_the_prefix_are_ours() {
        check("/apisix", "/apisix/stream_routes/7", Some("stream_routes/7"));
        check("/apisix", "/apisix/stream_routes_bak/7", None);
        check("/apisix", "/apisix/stream_routes/", None);
        check("/apisix", "/apisix2/stream_routes/7", None);
        check("/apisix/", "/apisix//upstreams/a/b", Some("upstreams/a/b"));
        check("", "/plugins", Some("plugins"));
    }

    #[test]
    fn range_ends_behind_the_last_key() {
        assert_eq!(Prefix::new("/apisix").end(), "/apisix0");
        assert_eq!(Prefix::new("/apisix/").end(), "/apisix/0");
        assert_eq!(Prefix::new("").end(), "0");
    }
}
