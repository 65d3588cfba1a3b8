//! Open files of this process: as many as the system allows, and of those a
//! part for drivers' connections, so that sessions, the admin socket and files
//! always find one.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Descriptors that drivers cannot have.
const RESERVE: usize = 256;
/// More than any site needs; a semaphore has a bound of its own.
const MOST: usize = 1 << 20;

/// Connections that drivers may have, all together. Clones share them.
#[derive(Debug, Clone)]
pub struct Sockets(Arc<Semaphore>);

/// One connection of a driver; it is free again when this is dropped.
#[derive(Debug)]
pub struct Socket {
    _permit: OwnedSemaphorePermit,
}

impl Sockets {
    /// As many as the limit of open files leaves, which is raised as far as it goes.
    pub fn of_this_process() -> Sockets {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
            tracing::warn!("the limit of open files stays at {}", current.unwrap_or_default());
        }
        let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
        Sockets::new(limit.unwrap_or(MOST).min(MOST).saturating_sub(RESERVE).max(RESERVE / 4))
    }

    /// A pool of this many.
    pub fn new(number: usize) -> Sockets {
        Sockets(Arc::new(Semaphore::new(number)))
    }

    /// Takes one, or says that there is none.
    pub fn take(&self) -> Result<Socket, String> {
        match Arc::clone(&self.0).try_acquire_owned() {
            Ok(permit) => Ok(Socket { _permit: permit }),
            Err(_) => Err("the gateway has no descriptor left for another connection; raise its limit of open \
                           files (LimitNOFILE, ulimit -n)"
                .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_drivers_are_bounded_and_come_back() {
        let sockets = Sockets::new(1);
        let first = sockets.take().unwrap();
        assert!(sockets.take().unwrap_err().contains("LimitNOFILE"));
        drop(first);
        assert!(sockets.take().is_ok());
        Sockets::of_this_process().take().unwrap();
    }
}
