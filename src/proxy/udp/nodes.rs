//! Which associations of a listening socket have heard from their node: an epoll of their own.
//!
//! A task and a registration with the runtime for each association cost memory and time at its
//! beginning, and answers of many could not leave with one call. So the sockets of an inlet's
//! associations are in one epoll instance, and that is what the runtime watches.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use streamgate_sys::watched::Watched;

use crate::flow::Id;

/// Associations that one call tells of.
const EVENTS: usize = 64;

/// The sockets of the associations of one listening socket. Who ends closes its socket, which takes it
/// out of here.
#[derive(Debug)]
pub(super) struct Nodes(Watched);

impl Nodes {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Watched::new(epoll::create(CreateFlags::CLOEXEC)?)?))
    }

    /// Watches the socket of an association. It is told of once when something comes, and not again
    /// until more does: whoever is told takes all there is.
    pub(super) fn watch(&self, socket: impl AsFd, id: Id) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::ET;
        Ok(epoll::add(self.0.descriptor(), socket, EventData::new_u64(id.to_bits()), flags)?)
    }

    /// Waits until there is something to tell.
    pub(super) async fn ready(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// Tells some of the associations that have something. Those may have ended since.
    pub(super) fn take(&self, mut tell: impl FnMut(Id)) -> io::Result<()> {
        let mut space = [MaybeUninit::<Event>::uninit(); EVENTS];
        let result = self.0.try_read(|epoll| {
            let (events, _) = epoll::wait(epoll, &mut space, Some(&Timespec::default()))?;
            for event in &*events {
                tell(Id::from_bits(event.data.u64()));
            }
            // So that the runtime waits for more.
            if events.len() < EVENTS { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}
