//! Knobs that make the stand-in misbehave in the ways that a real platform and a real network do.
//!
//! A fault is written as one word: `NAME[=VALUE][,ext=EXTENSION][,token=TOKEN][,times=N]`.
//! The service asks which ones apply; one with `times` goes away after that number of uses.

mod fault;

use std::time::Duration;

pub(super) use self::fault::no_fault;
pub use self::fault::{ALL, Fault, Kind, names};
use super::cmp::Unchanged;

/// Maximum faults.
pub const MAX_FAULTS: usize = 100;

/// All faults that are set.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

/// What goes wrong before a request is carried out.
#[derive(Debug, Default, PartialEq)]
pub struct Interference {
    /// Answer this error instead.
    pub error: Option<u16>,
    /// A reliable receiver of samples does not answer in this time.
    pub reliable_timeout: Option<Duration>,
    /// Close the connection; true if the request is carried out before.
    pub close: Option<bool>,
}

/// What goes wrong with a reply.
#[derive(Debug, Default, PartialEq)]
pub struct ReplyFault {
    /// How much later.
    pub late: Duration,
    /// How many times.
    pub missing: bool,
    /// Twice.
    pub doubled: bool,
    /// The data come as a push first.
    pub push_first: bool,
}

impl Faults {
    /// Sets a fault; one of the same name for the same extension and endpoint is replaced. False if there are too many.
    pub fn set(&mut self, fault: Fault) -> bool {
        self.0.retain(|old| {
            old.kind.name() != fault.kind.name() || old.extension != fault.extension || old.token != fault.token
        });
        if self.0.len() >= MAX_FAULTS {
            return false;
        }
        self.0.push(fault);
        true
    }

    /// Clears all faults, or those of one name; returns how many.
    pub fn clear(&mut self, name: Option<&str>) -> usize {
        let before = self.0.len();
        self.0.retain(|fault| name.is_some_and(|name| name != fault.kind.name()));
        before - self.0.len()
    }

    /// All faults that are set.
    pub fn all(&self) -> &[Fault] {
        &self.0
    }

    /// Which faults apply to a request before it is carried out.
    pub fn interfere(&mut self, extension: &str, token: &str) -> Interference {
        let mut found = Interference::default();
        self.apply(extension, token, |kind| match kind {
            Kind::Error(status) => {
                found.error = Some(*status);
                true
            }
            Kind::ReliableTimeout(time) if extension == "dcx" => {
                found.reliable_timeout = Some(*time);
                true
            }
            Kind::DropAfterPuback { kept } => {
                found.close = Some(*kept);
                true
            }
            _ => false,
        });
        found
    }

    /// Which faults apply to a reply.
    pub fn reply(&mut self, extension: &str, token: &str, can_be_pushed: bool) -> ReplyFault {
        let mut found = ReplyFault::default();
        self.apply(extension, token, |kind| match kind {
            Kind::StatusLate(time) => {
                found.late = *time;
                true
            }
            Kind::StatusMissing => {
                found.missing = true;
                true
            }
            Kind::StatusDoubled => {
                found.doubled = true;
                true
            }
            Kind::PushBeforeReply if can_be_pushed => {
                found.push_first = true;
                true
            }
            _ => false,
        });
        found
    }

    /// How many times a push is sent.
    pub fn pushes(&mut self, extension: &str, token: &str) -> usize {
        let mut count = 1;
        self.apply(extension, token, |kind| match kind {
            Kind::PushDoubled => {
                count *= 2;
                true
            }
            Kind::PushMissing => {
                count = 0;
                true
            }
            _ => false,
        });
        count
    }

    /// Whether a publication closes its connection before anything else happens; its topic may be anything.
    pub fn drops_publication(&mut self) -> bool {
        let mut drops = false;
        self.0.retain_mut(|fault| {
            let hit = !drops && fault.kind == Kind::DropAtPublish;
            drops |= hit;
            !hit || fault.survives_use()
        });
        drops
    }

    /// How "not changed" looks.
    pub fn unchanged(&self) -> Unchanged {
        let set = self.0.iter().find_map(|fault| match fault.kind {
            Kind::Unchanged(unchanged) => Some(unchanged),
            _ => None,
        });
        match set {
            Some(unchanged) => unchanged,
            None if self.is_strict() => Unchanged::Object,
            None => Unchanged::default(),
        }
    }

    /// Whether bodies have the keys of the specification only.
    pub fn is_strict(&self) -> bool {
        self.has(&Kind::StrictBodies)
    }

    /// Whether only subscribed topics are delivered.
    pub fn is_broker(&self) -> bool {
        self.has(&Kind::BrokerMode)
    }

    /// Whether a topic that is no request closes its connection.
    pub fn closes_on_bad_topic(&self) -> bool {
        self.has(&Kind::CloseOnBadTopic)
    }

    fn has(&self, kind: &Kind) -> bool {
        self.0.iter().any(|fault| fault.kind == *kind)
    }

    /// Shows every fault that concerns a message; counts those that `take` takes.
    fn apply(&mut self, extension: &str, token: &str, mut take: impl FnMut(&Kind) -> bool) {
        self.0.retain_mut(|fault| !(fault.concerns(extension, token) && take(&fault.kind)) || fault.survives_use());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_applies_where_it_should_and_as_often() {
        let mut faults = Faults::default();
        for text in ["status-missing,ext=dcx,token=T,times=2", "error=503,token=U", "push-doubled,times=1"] {
            assert!(faults.set(text.parse().unwrap()));
        }
        assert!(!faults.reply("cex", "T", true).missing);
        assert!(!faults.reply("dcx", "V", true).missing);
        assert!(faults.reply("dcx", "T", true).missing);
        assert!(faults.reply("dcx", "T", true).missing);
        assert!(!faults.reply("dcx", "T", true).missing);
        assert_eq!(faults.interfere("dcx", "T"), Interference::default());
        assert_eq!(faults.interfere("dcx", "U").error, Some(503));
        assert_eq!((faults.pushes("cex", "T"), faults.pushes("cex", "T")), (2, 1));
        assert!(faults.set("error=500,token=U".parse().unwrap()));
        assert_eq!(faults.all().len(), 1);
        assert_eq!(faults.interfere("dcx", "U").error, Some(500));
        assert_eq!(faults.clear(Some("status-late")), 0);
        assert_eq!(faults.clear(None), 1);
    }
}
