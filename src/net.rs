//! The first row with I/O: listening sockets, connections to nodes, TLS on them, HTTP requests, DNS, limits of
//! the process.

pub mod bind;
pub mod buffer;
pub mod checkup;
pub mod clock;
pub mod datagram;
pub mod dial;
pub mod dns;
mod each;
pub mod holder;
pub mod http;
pub mod limits;
pub mod this_host;
pub mod tls;
pub mod transfer;
pub mod trust;

pub use self::each::each;
