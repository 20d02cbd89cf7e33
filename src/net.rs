//! The first row with I/O: listening sockets, connections to nodes, TLS on them, HTTP requests, limits of the
//! process.

pub mod bind;
pub mod buffer;
pub mod datagram;
pub mod dial;
pub mod holder;
pub mod http;
pub mod limits;
pub mod tls;
pub mod transfer;
