//! A descriptor that the runtime watches, where tokio has no type of its own for it.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor of which the runtime knows whether it is readable.
#[derive(Debug)]
pub struct Watched(AsyncFd<Fixed>);

/// A descriptor that nobody can put another in the place of.
#[derive(Debug)]
struct Fixed(OwnedFd);

impl AsRawFd for Fixed {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Watched {
    /// Must be called inside a runtime. Fails where the kind of descriptor cannot be watched.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: an OwnedFd is open until dropped, and `Fixed`, which nobody else can name, neither
        // gives it away nor lets it be replaced. So it stays the same until the `AsyncFd` drops it.
        let watched = unsafe { AsyncFd::register_with_interest(Fixed(descriptor), Interest::READABLE) };
        Ok(Self(watched?))
    }

    /// The descriptor.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.get_ref().0.as_fd()
    }

    /// Waits until it may be readable: until something comes, if [`Watched::try_read`] met `WouldBlock`.
    /// Only the task that asked last is woken.
    pub async fn readable(&self) -> io::Result<()> {
        // Cheaper than the waiting list of `AsyncFd::readable`.
        poll_fn(|cx| self.0.poll_read_ready(cx)).await.map(drop)
    }

    /// Calls `read` if the descriptor may be readable. Where that returns `WouldBlock`, the runtime
    /// waits for it to become readable anew. `WouldBlock` also where it is known not to be.
    pub fn try_read<R>(&self, read: impl FnOnce(BorrowedFd<'_>) -> io::Result<R>) -> io::Result<R> {
        self.0.try_io(Interest::READABLE, |fixed| read(fixed.0.as_fd()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write, pipe};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn readable_is_told_again_after_would_block() {
        let (reader, mut writer) = pipe().unwrap();
        let watched = Watched::new(reader.try_clone().unwrap().into()).unwrap();
        let mut reader = reader;
        for _ in 0..3 {
            writer.write_all(b"x").unwrap();
            timeout(Duration::from_secs(5), watched.readable()).await.unwrap().unwrap();
            assert_eq!(watched.try_read(|_| reader.read(&mut [0])).unwrap(), 1);
            watched.readable().await.unwrap();
            let nothing = watched.try_read(|_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
            assert_eq!(nothing.unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let waits = timeout(Duration::from_millis(1), watched.readable()).await;
            assert!(waits.is_err(), "readable though nothing is there");
        }
    }

    #[tokio::test]
    async fn a_file_cannot_be_watched() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(Watched::new(file.into()).is_err());
    }
}
