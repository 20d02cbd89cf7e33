//! Proxies side by side on the same work: what each of them costs, as ratios with their spread.
//!
//! A round starts every proxy in a network namespace of its own and gives each work to all of them
//! in turn; several rounds pair their figures. The CPU time of a proxy is the figure to trust: how
//! long something takes also depends on what else the machine does.
//!
//! - [`metric`] what is measured, and its unit
//! - [`plan`] which proxies do what, how often
//! - [`proxy`] streamgate and its peers: found, set up, started on a core of their own
//! - [`usage`] CPU time, memory and descriptors of a process with its children
//! - [`upstream`] what the proxies forward to
//! - [`client`], [`datagram`] the load over TCP and over UDP
//! - [`tls`] the same with TLS
//! - [`round`] every work on every proxy
//! - [`limit`] the ratios that are required
//! - [`results`] medians, ratios and what is missing
//! - [`report`] results as JSON and as Markdown

pub mod client;
pub mod datagram;
pub mod limit;
pub mod metric;
pub mod plan;
pub mod proxy;
pub mod report;
pub mod results;
pub mod round;
pub mod tls;
pub mod upstream;
pub mod usage;
