//! streamgate: an L4 gateway configured by the data Apache APISIX keeps in etcd.
//!
//! # Layout
//! Modules are rows; each names only modules of rows above its own in this list
//! (`docs/architecture.md` says why, `tests/layers.rs` enforces it). Rows up to `snapshot` do no
//! I/O, read no clock and spawn nothing.
//!
//! - [`addr`] networks and `host:port`; [`sni`] server names; [`number`] numbers as Lua reads them;
//!   [`persistent`] collections whose clones share; [`drain`] the stop signal; [`metrics`] what a node counts
//! - [`session`] what is known of a client and how its session ended; [`health`] results of checks to states
//! - [`proxy_protocol`] who a connection comes from, told by a proxy in front; [`live`] statistics that
//!   outlive snapshots
//! - [`config`] config.yaml; [`expr`] filter expressions; [`flow`] the table of UDP associations
//! - [`resource`] stream_routes, upstreams, services, ssls: JSON to typed
//! - [`matcher`] connection to rule; [`certs`] server name to certificate
//! - [`balance`] session to node; [`plugin`] what runs between
//! - [`store`] the last good version of every object
//! - [`snapshot`] the immutable state that sessions are routed by
//! - [`net`] listening sockets, connections to nodes, limits of the process
//! - [`source`] changes of objects, from etcd or a file; [`resolve`] names to addresses;
//!   [`discovery`] services to nodes; [`control`]
//!   events to published snapshots; [`proxy`] sessions; [`log`] a line for each ending somebody has
//!   to look at; [`report`] lines to syslog servers; [`admin`] pages over HTTP
//! - [`app`] all of it, wired

pub mod addr;
pub mod admin;
pub mod app;
pub mod balance;
pub mod certs;
pub mod config;
pub mod control;
pub mod discovery;
pub mod drain;
pub mod expr;
pub mod flow;
pub mod health;
pub mod live;
pub mod log;
pub mod matcher;
pub mod metrics;
pub mod net;
pub mod number;
pub mod persistent;
pub mod plugin;
pub mod probe;
pub mod proxy;
pub mod proxy_protocol;
pub mod report;
pub mod resolve;
pub mod resource;
pub mod session;
pub mod snapshot;
pub mod sni;
pub mod source;
pub mod store;
pub mod template;
