//! Failures that are nobody's fault and pass by themselves: the machine is out
//! of descriptors, memory or processes. What failed so is tried again.

use std::error::Error;

use rustix::io::Errno;

/// The machine has not enough of something; the text says of what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Shortage(pub String);

/// Whether an error, or what caused it, is a shortage.
pub fn is_shortage<'a>(chain: impl Iterator<Item = &'a (dyn Error + 'static)>) -> bool {
    chain.into_iter().any(|cause| {
        let errno = match cause.downcast_ref::<std::io::Error>() {
            Some(error) => Errno::from_io_error(error),
            None => cause.downcast_ref::<Errno>().copied(),
        };
        matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::NOBUFS))
            || cause.is::<Shortage>()
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn shortages_are_found_behind_what_was_being_done() {
        let io = |errno: Errno| anyhow::Error::from(std::io::Error::from(errno)).context("reading a file");
        for (error, expected) in [
            (io(Errno::MFILE), true),
            (io(Errno::NOENT), false),
            (Err::<(), _>(Errno::NOMEM).context("mapping").unwrap_err(), true),
            (anyhow::Error::new(Shortage("killed".into())), true),
            (anyhow::anyhow!("a broken component"), false),
        ] {
            assert_eq!(is_shortage(error.chain()), expected, "{error:#}");
        }
    }
}
