//! The first row with I/O: listening sockets, connections to nodes, limits of the process.

pub mod bind;
pub mod datagram;
pub mod dial;
pub mod holder;
pub mod limits;
