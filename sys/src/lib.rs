//! System calls that the safe crates lack: the only unsafe code of streamgate.
//!
//! - [`datagram`] what a datagram socket is told once: packet info, GRO
//! - [`receive`] batches of datagrams with their peers, local addresses and segment sizes
//! - [`send`] batches of datagrams, each with its own peer, source address and segment size
//! - [`watched`] a descriptor watched by the runtime
//! - [`segment`] segmentation offload of a whole socket, for senders whose datagrams have one size
//! - [`tcp`] what the kernel knows of a connection
//! - [`zone`] the time zone of this host
//! - `arena`: the memory datagrams lie in
//! - `places`: arrays the kernel is given pointers into
//! - `address`: socket addresses to and from the kernel's form
//! - `control`: control messages, read and written
//!
//! And what tests need: [`allocation`], an allocator that counts.

pub mod allocation;

mod address;
mod arena;
mod control;
pub mod datagram;
mod places;
pub mod receive;
pub mod segment;
pub mod send;
pub mod tcp;
pub mod watched;
pub mod zone;
