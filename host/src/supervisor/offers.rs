//! What clouds offer and is not yet taken or refused. Only the state; what is
//! done with an offer is in `configurations` and in `software`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value as Json;

use crate::message::{Offer, OfferKind, SessionName};

/// An offer of a session to a device, with what is offered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Offered {
    pub session: SessionName,
    pub offer: Offer,
    /// The configuration, or the description of the software.
    pub document: Json,
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Offers {
    /// All on their way: session, device, what.
    open: BTreeSet<(SessionName, String, OfferKind, String)>,
    /// Configurations, by device.
    configurations: BTreeMap<String, Line>,
    /// The newest software that each session offers to each device.
    newest_software: BTreeMap<(SessionName, String), String>,
}

/// Configurations for one device. One at a time: each lies over what the one
/// before has changed.
#[derive(Default)]
struct Line {
    /// Whether the device is taking one.
    is_busy: bool,
    waiting: VecDeque<Offered>,
}

impl Offers {
    /// Notes an offer; false when it is on its way already: the same comes as an
    /// answer and as a push.
    pub(super) fn begin(&mut self, session: &SessionName, device: &str, offer: &Offer) -> bool {
        self.open.insert(key(session, device, offer))
    }

    /// Ends an offer: it is taken, refused, or left for later.
    pub(super) fn end(&mut self, session: &SessionName, device: &str, offer: &Offer) {
        self.open.remove(&key(session, device, offer));
    }

    /// Lets a configuration wait for its turn.
    pub(super) fn queue_configuration(&mut self, device: &str, offered: Offered) {
        self.configurations.entry(device.to_owned()).or_default().waiting.push_back(offered);
    }

    /// The next configuration for a device, unless it is taking one; it is
    /// taking this one from now on.
    pub(super) fn next_configuration(&mut self, device: &str) -> Option<Offered> {
        let line = self.configurations.get_mut(device).filter(|line| !line.is_busy)?;
        let Some(next) = line.waiting.pop_front() else {
            self.configurations.remove(device);
            return None;
        };
        line.is_busy = true;
        Some(next)
    }

    /// The device has taken or refused its configuration.
    pub(super) fn configuration_is_done(&mut self, device: &str) {
        if let Some(line) = self.configurations.get_mut(device) {
            line.is_busy = false;
        }
    }

    /// The device was stopped before it could say: this one is tried again.
    pub(super) fn retry_configuration(&mut self, device: &str, offered: Offered) {
        let line = self.configurations.entry(device.to_owned()).or_default();
        line.is_busy = false;
        line.waiting.push_front(offered);
    }

    /// Whether a device is taking a configuration.
    pub(super) fn is_configuring(&self, device: &str) -> bool {
        self.configurations.get(device).is_some_and(|line| line.is_busy)
    }

    /// Notes the software that a session offers last; older versions that are
    /// on their way are withdrawn by it.
    pub(super) fn set_newest_software(&mut self, session: &SessionName, device: &str, version: &str) {
        self.newest_software.insert((session.clone(), device.to_owned()), version.to_owned());
    }

    /// Forgets the software that was offered to a device that is gone.
    pub(super) fn forget_software(&mut self, device: &str) {
        self.newest_software.retain(|(_, other), _| other != device);
    }

    /// Whether a version is still what the session offers.
    pub(super) fn is_newest_software(&self, session: &SessionName, device: &str, version: &str) -> bool {
        let newest = self.newest_software.get(&(session.clone(), device.to_owned()));
        newest.is_some_and(|newest| newest == version)
    }
}

fn key(session: &SessionName, device: &str, offer: &Offer) -> (SessionName, String, OfferKind, String) {
    (session.clone(), device.to_owned(), offer.kind.clone(), offer.id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(id: &str) -> Offered {
        let offer = Offer { kind: OfferKind::Configuration(None), id: id.into() };
        Offered { session: SessionName::new("s"), offer, document: Json::Null }
    }

    #[test]
    fn the_same_offer_begins_once_until_it_has_ended() {
        let (mut offers, one) = (Offers::default(), offered("1").offer);
        let [s, other] = ["s", "other"].map(SessionName::new);
        assert!(offers.begin(&s, "a", &one));
        assert!(!offers.begin(&s, "a", &one));
        assert!(offers.begin(&other, "a", &one) && offers.begin(&s, "b", &one));
        offers.end(&s, "a", &one);
        assert!(offers.begin(&s, "a", &one));
    }

    #[test]
    fn a_device_takes_one_configuration_at_a_time_and_in_order() {
        let mut offers = Offers::default();
        for id in ["1", "2"] {
            offers.queue_configuration("a", offered(id));
        }
        assert_eq!(offers.next_configuration("b"), None);
        assert_eq!(offers.next_configuration("a"), Some(offered("1")));
        assert!(offers.is_configuring("a"));
        assert_eq!(offers.next_configuration("a"), None);
        // It was stopped while it took the first one.
        offers.retry_configuration("a", offered("1"));
        assert_eq!(offers.next_configuration("a"), Some(offered("1")));
        offers.configuration_is_done("a");
        assert_eq!(offers.next_configuration("a"), Some(offered("2")));
        offers.configuration_is_done("a");
        assert_eq!(offers.next_configuration("a"), None);
        assert!(!offers.is_configuring("a") && offers.configurations.is_empty());
    }

    #[test]
    fn only_the_software_that_was_offered_last_is_taken() {
        let (mut offers, s) = (Offers::default(), SessionName::new("s"));
        assert!(!offers.is_newest_software(&s, "a", "1.0.0"));
        offers.set_newest_software(&s, "a", "1.0.0");
        offers.set_newest_software(&s, "a", "1.1.0");
        assert!(offers.is_newest_software(&s, "a", "1.1.0") && !offers.is_newest_software(&s, "a", "1.0.0"));
        offers.set_newest_software(&s, "b", "1.1.0");
        offers.forget_software("a");
        assert!(offers.is_newest_software(&s, "b", "1.1.0") && !offers.is_newest_software(&s, "a", "1.1.0"));
    }
}
