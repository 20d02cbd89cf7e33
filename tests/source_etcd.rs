//! The etcd source against a real etcd: changes, outages, lost histories, several endpoints.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/follow.rs"]
mod follow;
#[path = "support/proxy.rs"]
mod proxy;

use std::time::Duration;

use etcd::Etcd;
use follow::{Follow, config};
use proxy::Proxy;
use streamgate::live::source_status::SourceStatus;
use streamgate::store::Event;
use tokio::time::Instant;

#[tokio::test]
async fn what_is_there_comes_first_then_every_change() {
    let etcd = Etcd::start().await;
    for (key, value) in
        [("upstreams/10", "a"), ("upstreams/2", "b"), ("routes/1", "http"), ("upstreams/", "init_dir")]
    {
        etcd.put(&format!("/apisix/{key}"), value).await;
    }
    etcd.put("/apisix_other/upstreams/3", "c").await;
    let mut follow = Follow::start(config([etcd.endpoint()]));
    let batch = follow.batch().await;
    let [Event::Resync { objects, revision }] = &batch.events[..] else { panic!("{batch:?}") };
    let names: Vec<_> = objects.iter().map(|(key, _, _)| key.to_string()).collect();
    assert_eq!(names, ["upstreams/10", "upstreams/2"], "in the order of the keys' bytes");
    assert_eq!((*revision, batch.revision), (6, 6), "foreign keys count");
    assert_eq!(objects[1].2, 3, "the revision of the object is its own");

    let revision = etcd.put("/apisix/stream_routes/7", "new").await;
    follow.until("stream_routes/7", Some("new")).await;
    assert_eq!(follow.revision, revision);
    etcd.put("/apisix/stream_routes/7", "not json {").await;
    follow.until("stream_routes/7", Some("not json {")).await;
    etcd.put("/apisix/upstreams/2", "").await;
    follow.until("upstreams/2", None).await;
    let revision = etcd.delete("/apisix/stream_routes/7").await;
    follow.until("stream_routes/7", None).await;
    assert_eq!(follow.revision, revision);
    assert_eq!(follow.resyncs, 1);
}

#[tokio::test]
async fn a_transaction_is_one_batch() {
    let etcd = Etcd::start().await;
    etcd.put("/apisix/upstreams/old", "x").await;
    let mut follow = Follow::start(config([etcd.endpoint()]));
    follow.until("upstreams/old", Some("x")).await;
    let changes = [
        ("/apisix/upstreams/a", Some("1")),
        ("/apisix/routes/http", Some("2")),
        ("/apisix/services/b", Some("3")),
        ("/apisix/upstreams/old", None),
    ];
    let revision = etcd.txn(&changes).await;
    let batch = follow.batch().await;
    assert_eq!((batch.events.len(), batch.revision), (3, revision), "{batch:?}");
    assert!(matches!(batch.events[2], Event::Delete { .. }), "{batch:?}");
}

#[tokio::test]
async fn status_tells_how_it_goes() {
    let mut etcd = Etcd::start().await;
    etcd.put("/apisix/stream_routes/1", "x").await;
    let mut follow = Follow::start(config([etcd.endpoint()]));
    follow.until("stream_routes/1", Some("x")).await;
    follow.poll("reachable", SourceStatus::reachable).await;
    let outside = etcd.put("/elsewhere", "x").await;
    let foreign = etcd.put("/apisix/routes/1", "x").await;
    follow.poll("applied revision", |status| status.applied_revision() == foreign).await;
    assert!(foreign > outside && follow.status.seen_revision() >= foreign);
    let indexes: Vec<_> = follow.status.modify_indexes().filter(|(_, revision)| *revision > 0).collect();
    assert_eq!(indexes, [("routes", foreign), ("stream_routes", 2)]);
    assert_ne!(follow.status.cluster(), 0);
    assert_eq!(follow.status.last_error(), None);
    etcd.stop();
    follow.poll("unreachable", |status| !status.reachable()).await;
    assert!(follow.status.last_error().is_some_and(|error| error.sentence.contains(&etcd.endpoint())));
    etcd.restart().await;
    follow.poll("reachable again", SourceStatus::reachable).await;
    assert_eq!(follow.status.last_error(), None);
    assert!(follow.status.reconnects() > 0);
}

#[tokio::test]
async fn a_start_without_etcd_keeps_trying() {
    let mut etcd = Etcd::start().await;
    etcd.put("/apisix/upstreams/1", "x").await;
    etcd.stop();
    let mut follow = Follow::start(config([etcd.endpoint()]));
    follow.poll("an error", |status| status.last_error().is_some()).await;
    assert!(!follow.status.reachable());
    etcd.restart().await;
    follow.until("upstreams/1", Some("x")).await;
}

#[tokio::test]
async fn after_a_restart_it_goes_on_where_it_was() {
    let mut etcd = Etcd::start().await;
    etcd.put("/apisix/upstreams/1", "x").await;
    let proxy = Proxy::start(etcd.addr()).await;
    let mut follow = Follow::start(config([proxy.endpoint()]));
    follow.until("upstreams/1", Some("x")).await;
    proxy.block();
    etcd.put("/apisix/upstreams/2", "while away").await;
    etcd.restart().await;
    etcd.delete("/apisix/upstreams/1").await;
    proxy.unblock();
    follow.until("upstreams/1", None).await;
    follow.until("upstreams/2", Some("while away")).await;
    assert_eq!(follow.resyncs, 1, "the history was still there");
}

#[tokio::test]
async fn a_deleted_key_is_a_good_enough_witness() {
    let etcd = Etcd::start().await;
    etcd.put("/apisix/upstreams/1", "x").await;
    let proxy = Proxy::start(etcd.addr()).await;
    let mut follow = Follow::start(config([proxy.endpoint()]));
    follow.until("upstreams/1", Some("x")).await;
    etcd.delete("/apisix/upstreams/1").await;
    follow.until("upstreams/1", None).await;
    proxy.cut();
    etcd.put("/apisix/upstreams/2", "y").await;
    follow.until("upstreams/2", Some("y")).await;
    assert_eq!(follow.resyncs, 1);
}

#[tokio::test]
async fn a_compacted_history_means_a_full_read() {
    let etcd = Etcd::start().await;
    etcd.put("/apisix/upstreams/1", "x").await;
    let proxy = Proxy::start(etcd.addr()).await;
    let mut follow = Follow::start(config([proxy.endpoint()]));
    follow.until("upstreams/1", Some("x")).await;
    proxy.block();
    etcd.put("/apisix/upstreams/2", "y").await;
    etcd.delete("/apisix/upstreams/1").await;
    let last = etcd.put("/apisix/upstreams/3", "z").await;
    etcd.compact(last).await;
    proxy.unblock();
    follow.until("upstreams/3", Some("z")).await;
    assert_eq!(follow.names(), ["upstreams/2", "upstreams/3"]);
    assert_eq!(follow.resyncs, 2);
}

/// Empties etcd while the source is away, then writes `writes` times; the source must notice.
async fn check_lost_history(token: Option<&str>, writes: usize) {
    let mut etcd = Etcd::start().await;
    for id in 0..5 {
        etcd.put(&format!("/apisix/upstreams/{id}"), "old").await;
    }
    let proxy = Proxy::start(etcd.addr()).await;
    let mut follow = Follow::start(config([proxy.endpoint()]));
    follow.until("upstreams/4", Some("old")).await;
    proxy.block();
    etcd.wipe(token);
    etcd.restart().await;
    for _ in 0..writes {
        etcd.put("/apisix/upstreams/new", "new").await;
    }
    proxy.unblock();
    follow.until("upstreams/new", Some("new")).await;
    assert_eq!(follow.names(), ["upstreams/new"], "token {token:?}, {writes} writes");
    // And from there on it follows.
    etcd.put("/apisix/upstreams/newer", "x").await;
    follow.until("upstreams/newer", Some("x")).await;
}

#[tokio::test]
async fn a_lower_revision_means_a_full_read() {
    check_lost_history(None, 1).await;
}

#[tokio::test]
async fn another_history_of_the_same_revision_means_a_full_read() {
    check_lost_history(None, 5).await;
    check_lost_history(None, 9).await;
}

#[tokio::test]
async fn another_cluster_means_a_full_read() {
    check_lost_history(Some("other"), 9).await;
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let (mut first, second) = (Etcd::start().await, Etcd::start().await);
    for etcd in [&first, &second] {
        etcd.put("/apisix/upstreams/1", etcd.endpoint()).await;
    }
    let dead = "http://127.0.0.1:1".to_owned();
    let mut follow = Follow::start(config([dead.clone(), first.endpoint(), dead.clone()]));
    follow.until("upstreams/1", Some(&first.endpoint())).await;
    let mut follow = Follow::start(config([first.endpoint(), dead]));
    follow.until("upstreams/1", Some(&first.endpoint())).await;
    first.stop();
    // Two clusters stand in for two members: the other id is noticed and all is read again.
    let mut follow = Follow::start(config([first.endpoint(), second.endpoint()]));
    follow.until("upstreams/1", Some(&second.endpoint())).await;
}

#[tokio::test]
async fn three_thousand_objects_in_one_burst() {
    let etcd = Etcd::start().await;
    let mut follow = Follow::start(config([etcd.endpoint()]));
    follow.batch().await;
    let client = etcd.client().await;
    let writers = (0..6).map(|writer| {
        let mut client = client.clone();
        tokio::spawn(async move {
            for id in (writer * 500)..(writer * 500 + 500) {
                client.put(format!("/apisix/stream_routes/{id}"), "x", None).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    follow.until_count(3000).await;
    assert_eq!(follow.resyncs, 1);
    let mut again = Follow::start(config([etcd.endpoint()]));
    again.until_count(3000).await;
    assert_eq!(again.state, follow.state);
}

#[tokio::test]
async fn a_value_of_five_megabytes_passes() {
    let etcd = Etcd::start_with(&["--max-request-bytes=9000000"], None).await;
    let large = "x".repeat(5 << 20);
    let mut follow = Follow::start(config([etcd.endpoint()]));
    follow.batch().await;
    etcd.put("/apisix/upstreams/large", large.as_str()).await;
    follow.until("upstreams/large", Some(&large)).await;
    let mut again = Follow::start(config([etcd.endpoint()]));
    again.until("upstreams/large", Some(&large)).await;
}

#[tokio::test]
async fn a_page_beyond_the_limit_is_asked_for_in_parts() {
    let etcd = Etcd::start_with(&["--max-request-bytes=9000000"], None).await;
    let large = "x".repeat(8 << 20);
    for id in 0..10 {
        etcd.put(&format!("/apisix/upstreams/{id}"), large.as_str()).await;
    }
    let mut follow = Follow::start(config([etcd.endpoint()]));
    follow.until_count(10).await;
    assert_eq!(follow.resyncs, 1);
}

#[tokio::test]
async fn silence_is_noticed_and_nothing_is_lost() {
    let etcd = Etcd::start().await;
    etcd.put("/apisix/upstreams/1", "x").await;
    let mut follow = Follow::start(config([etcd.endpoint()]));
    follow.until("upstreams/1", Some("x")).await;
    follow.poll("a watch", SourceStatus::reachable).await;
    etcd.pause();
    follow.poll("the deadline", |status| !status.reachable()).await;
    etcd.resume();
    etcd.put("/apisix/upstreams/2", "y").await;
    follow.until("upstreams/2", Some("y")).await;
    assert_eq!(follow.resyncs, 1);
}

#[tokio::test]
async fn a_quiet_watch_stays() {
    let etcd = Etcd::start().await;
    let mut follow = Follow::start(config([etcd.endpoint()]));
    follow.batch().await;
    follow.poll("reachable", SourceStatus::reachable).await;
    let contact = |follow: &Follow| follow.status.contact_age(Instant::now().into_std()).unwrap();
    let longer_than_silence = Instant::now() + 2 * follow::TIMING.silence;
    while Instant::now() < longer_than_silence {
        follow.quiet(Duration::from_millis(50)).await;
        assert!(contact(&follow) < follow::TIMING.silence);
    }
    assert_eq!(follow.status.reconnects(), 0);
}

#[tokio::test]
async fn no_event_is_lost_or_repeated_while_connections_break() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.addr()).await;
    let mut follow = Follow::start(config([proxy.endpoint()]));
    follow.batch().await;
    let mut client = etcd.client().await;
    let writer = tokio::spawn(async move {
        let mut last = 0;
        for i in 0..1500 {
            let answer = client.put(format!("/apisix/upstreams/{}", i % 50), i.to_string(), None).await;
            last = answer.unwrap().header().unwrap().revision();
            if i % 7 == 0 {
                client.delete(format!("/apisix/upstreams/{}", (i + 25) % 50), None).await.unwrap();
            }
        }
        client.put("/apisix/upstreams/last", "x", None).await.unwrap();
        last
    });
    while !writer.is_finished() {
        follow.quiet_or_batch(Duration::from_millis(rand::random_range(5..60))).await;
        proxy.cut();
    }
    follow.until("upstreams/last", Some("x")).await;
    assert!(follow.revision > writer.await.unwrap());
    assert_eq!(follow.resyncs, 1, "every break was resumed from");
    let mut fresh = Follow::start(config([etcd.endpoint()]));
    fresh.until("upstreams/last", Some("x")).await;
    assert_eq!(follow.state, fresh.state);
    // Revisions only ever rose: `Follow` checks it batch by batch.
    assert!(follow.status.reconnects() > 3, "{} breaks", follow.status.reconnects());
}

#[tokio::test]
async fn a_change_arrives_at_once() {
    let etcd = Etcd::start().await;
    let mut follow = Follow::start(config([etcd.endpoint()]));
    follow.batch().await;
    let mut client = etcd.client().await;
    let mut waits = Vec::new();
    for i in 0..50 {
        client.put("/apisix/upstreams/1", i.to_string(), None).await.unwrap();
        let acknowledged = Instant::now();
        follow.until("upstreams/1", Some(&i.to_string())).await;
        waits.push(acknowledged.elapsed());
    }
    waits.sort();
    // Far above what is expected (0.2 ms), far below a lost wake-up or Nagle's 40 ms.
    assert!(waits[25] < Duration::from_millis(20), "median {:?}", waits[25]);
}

#[tokio::test]
async fn a_stop_ends_it() {
    let etcd = Etcd::start().await;
    let mut follow = Follow::start(config([etcd.endpoint()]));
    follow.batch().await;
    follow.stop().await;
}
