//! Whether a file is another one than at the last look.

use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// File systems count time in steps of up to 2 s (FAT; NFS caches for longer): a file written so
/// shortly before it was read may have changed again unseen.
const COARSEST_CLOCK: Duration = Duration::from_secs(3);

/// What a file was at the last look.
#[derive(Debug, Default)]
pub(super) struct Stamp {
    /// Device, inode, modification time in seconds and nanoseconds, size; none: look at the content.
    outside: Option<(u64, u64, i64, i64, u64)>,
    content: Option<u64>,
}

/// The result of a look.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Looked {
    /// Nothing changed.
    Same,
    /// The new content.
    Changed(Vec<u8>),
}

impl Stamp {
    /// Looks at the file, through links. After an error the next content counts as changed.
    pub(super) fn look(&mut self, path: &Path) -> io::Result<Looked> {
        self.compare(path).inspect_err(|_| *self = Self::default())
    }

    fn compare(&mut self, path: &Path) -> io::Result<Looked> {
        let metadata = fs::metadata(path)?;
        let outside = Some(outside(&metadata));
        if outside == self.outside {
            return Ok(Looked::Same);
        }
        let bytes = fs::read(path)?;
        self.outside = if settled(&metadata) { outside } else { None };
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        let content = Some(hasher.finish());
        if content == self.content {
            return Ok(Looked::Same);
        }
        self.content = content;
        Ok(Looked::Changed(bytes))
    }
}

fn outside(metadata: &Metadata) -> (u64, u64, i64, i64, u64) {
    (metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size())
}

/// Whether the next write is sure to get another modification time.
fn settled(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    age.is_some_and(|age| age > COARSEST_CLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_in_the_same_instant_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut stamp = Stamp::default();
        let time = SystemTime::now();
        for content in ["one", "two"] {
            fs::write(&path, content).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            assert_eq!(stamp.look(&path).unwrap(), Looked::Changed(content.into()));
            assert_eq!(stamp.look(&path).unwrap(), Looked::Same);
        }
    }

    #[test]
    fn an_old_file_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut stamp = Stamp::default();
        let time = SystemTime::now() - Duration::from_mins(1);
        for (content, expected) in [("one", Looked::Changed("one".into())), ("two", Looked::Same)] {
            fs::write(&path, content).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            assert_eq!(stamp.look(&path).unwrap(), expected, "outside, {content} looks the same");
        }
    }

    #[test]
    fn a_file_that_comes_back_counts_as_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut stamp = Stamp::default();
        fs::write(&path, "one").unwrap();
        stamp.look(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(stamp.look(&path).is_err());
        fs::write(&path, "one").unwrap();
        assert_eq!(stamp.look(&path).unwrap(), Looked::Changed("one".into()));
    }
}
