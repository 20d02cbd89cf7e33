//! System calls that the safe crates lack: the only unsafe code of streamgate.
//!
//! - [`datagram`] one datagram with its peer and the local address it was sent to, and one back from
//!   that address. Batches (`recvmmsg`, `sendmmsg`) and segments (GRO, GSO) are further control
//!   messages and further calls over the same two building blocks:
//! - [`tcp`] what the kernel knows of a connection
//! - `address`: socket addresses to and from the kernel's form
//! - `control`: control messages, read and written
//!
//! And what tests need: [`allocation`], an allocator that counts.

pub mod allocation;

mod address;
mod control;
pub mod datagram;
pub mod tcp;
