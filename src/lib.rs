//! streamgate: an L4 gateway configured by the data Apache APISIX keeps in etcd.
//!
//! # Layout
//! Modules are rows; each names only modules of rows above its own in this list
//! (`docs/architecture.md` says why, `tests/layers.rs` enforces it). Rows up to `snapshot` do no
//! I/O, read no clock and spawn nothing.
//!
//! - [`addr`] networks and `host:port`; [`sni`] server names; [`number`] numbers as Lua reads them
//! - [`session`] what is known of a client and how its session ended; [`live`] statistics that
//!   outlive snapshots
//! - [`config`] config.yaml; [`expr`] filter expressions
//! - [`resource`] stream_routes, upstreams, services, ssls: JSON to typed
//! - [`matcher`] connection to rule; [`balance`] session to node; [`plugin`] what runs between
//! - [`store`] the last good version of every object
//! - [`snapshot`] the immutable state that sessions are routed by
//! - [`control`] the loop that turns events into published snapshots
//! - [`metrics`] what a node counts; [`admin`] its pages over HTTP; [`log`] a line for each ending
//!   somebody has to look at
//! - [`source`] changes of objects, from etcd or a file

pub mod addr;
pub mod admin;
pub mod balance;
pub mod config;
pub mod control;
pub mod expr;
pub mod live;
pub mod log;
pub mod matcher;
pub mod metrics;
pub mod number;
pub mod plugin;
pub mod resolve;
pub mod resource;
pub mod session;
pub mod snapshot;
pub mod sni;
pub mod source;
pub mod store;
