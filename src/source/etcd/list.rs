//! The full read: every object below the prefix at one revision, page by page.

use std::time::Duration;

use bytes::Bytes;
use etcd_client::{GetOptions, GetResponse, KvClient};
use tokio::time::{Instant, timeout};

use super::failure::Failure;
use super::keys::{Position, Prefix, Witness};
use crate::live::source_status::SourceStatus;
use crate::resource::Key;

/// Keys of one page. etcd walks all keys of the range for every page (measured with 100,000 objects:
/// 1.9 s by 500, 0.4 s by 10,000); a page whose values are too large is asked for in smaller parts.
const PAGE: i64 = 5000;

/// Everything below a prefix.
#[derive(Debug)]
pub(super) struct Listing {
    /// Ours, in the order of their keys' bytes, with the revision each was written at.
    pub(super) objects: Vec<(Key, Bytes, i64)>,
    /// Where the changes begin that are not in it.
    pub(super) position: Position,
}

/// Reads below one prefix.
pub(super) struct Reader<'a> {
    /// With a raised limit of decoding.
    pub(super) kv: KvClient,
    /// What to read.
    pub(super) prefix: &'a Prefix,
    /// Deadline of one request.
    pub(super) limit: Duration,
    /// Told of each answer.
    pub(super) status: &'a SourceStatus,
}

impl Reader<'_> {
    /// Reads all pages.
    pub(super) async fn read(&mut self) -> Result<Listing, Failure> {
        let mut listing = Listing { objects: Vec::new(), position: self.start() };
        let mut from = self.prefix.start().as_bytes().to_vec();
        let mut page = PAGE;
        loop {
            let options = GetOptions::new()
                .with_range(self.prefix.end())
                .with_limit(page)
                .with_revision(listing.position.revision);
            let mut answer = match self.get(from.clone(), options).await {
                Err(Failure::TooLarge(_)) if page > 1 => {
                    page /= 4;
                    page = page.max(1);
                    continue;
                }
                other => other?,
            };
            if listing.position.revision == 0 {
                let header = answer.header().ok_or_else(headless)?;
                listing.position.revision = header.revision();
                listing.position.cluster = header.cluster_id();
                self.status.forget_modifications();
            }
            let more = answer.more();
            match self.take(&mut listing, &mut answer) {
                Some(last) if more => {
                    from = last;
                    from.push(0);
                }
                _ => return Ok(listing),
            }
        }
    }

    /// Whether etcd still holds the history that `position` was taken from.
    pub(super) async fn still_holds(&mut self, position: &Position) -> Result<bool, Failure> {
        let options = GetOptions::new().with_keys_only().with_revision(position.revision);
        let answer = match self.get(position.witness.key.clone(), options).await {
            // Compacted, or not reached yet by a cluster that began anew.
            Err(Failure::Position(_)) => return Ok(false),
            other => other?,
        };
        let cluster = answer.header().ok_or_else(headless)?.cluster_id();
        let modified = answer.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision);
        Ok(cluster == position.cluster && modified == position.witness.modified)
    }

    /// Before the first page: no revision asks for the newest.
    fn start(&self) -> Position {
        let witness = Witness { key: self.prefix.start().into(), modified: 0 };
        Position { cluster: 0, revision: 0, witness }
    }

    /// Adds a page; returns its last key.
    fn take(&self, listing: &mut Listing, answer: &mut GetResponse) -> Option<Vec<u8>> {
        let mut last = None;
        for kv in answer.take_kvs() {
            let modified = kv.mod_revision();
            let (key, value) = kv.into_key_value();
            self.prefix.note(self.status, &key, modified);
            // An empty value stands for a deletion, here as in the watch.
            if !value.is_empty()
                && let Some(object) = self.prefix.object(&key)
            {
                listing.objects.push((object, value.into(), modified));
            }
            if modified > listing.position.witness.modified {
                listing.position.witness = Witness { key: key.clone(), modified };
            }
            last = Some(key);
        }
        last
    }

    async fn get(&mut self, key: Vec<u8>, options: GetOptions) -> Result<GetResponse, Failure> {
        let answer = timeout(self.limit, self.kv.get(key, Some(options)))
            .await
            .map_err(|_| Failure::timeout("read the objects", self.limit))?
            .map_err(|error| Failure::from_etcd("read the objects", &error))?;
        self.status.contact(Instant::now().into_std());
        if let Some(header) = answer.header() {
            self.status.see(header.revision());
        }
        Ok(answer)
    }
}

fn headless() -> Failure {
    Failure::Refused("etcd answered without a header; is this endpoint etcd?".into())
}
