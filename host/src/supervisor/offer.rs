//! Taking over what a cloud offers to a device: configurations here, software
//! in `software`.
//!
//! A configuration of the cloud lies over the one in the file: what it names
//! counts, the rest stays. It is kept over restarts. A named one is the
//! bucket of that name.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::{Report, Supervisor};
use crate::device::Input;
use crate::message::{DeviceId, Offer, OfferKind, Uplink, now};
use crate::session::Order;

/// An offer on its way: the session, the device, what.
pub(super) type Pending = (String, String, OfferKind, String);

/// An offered configuration that waits for an earlier one of its device.
pub(super) type Waiting = (Arc<str>, Offer, Json);

/// An offered configuration that the driver has taken or refused.
pub(super) struct Taken {
    session: String,
    device: String,
    offer: Offer,
    document: Json,
    result: Result<(), String>,
}

impl Supervisor {
    /// Does what a cloud wants of the gateway.
    pub(super) fn carry_out(&mut self, order: Order) {
        match order {
            Order::Command(request) => self.gateway_command(request),
            Order::Offer { session, device, offer, document } => {
                // The same comes as an answer and as a push.
                if !self.offers.insert(pending(&session, device.as_str(), &offer)) {
                    return;
                }
                match offer.kind {
                    // One at a time: each lies over what the one before has changed.
                    OfferKind::Configuration(_) => match self.waiting.get_mut(device.as_str()) {
                        Some(waiting) => waiting.push_back((session, offer, document)),
                        None => {
                            self.waiting.insert(device.to_string(), VecDeque::new());
                            self.take_configuration(&session, &device, offer, document);
                        }
                    },
                    OfferKind::Software => self.take_software(&session, &device, offer, document),
                }
            }
        }
    }

    fn take_configuration(&mut self, session: &str, device: &DeviceId, offer: Offer, document: Json) {
        let id = device.as_str().to_owned();
        let applied = self.memory.applied(&id, session);
        let known = applied.get(&offer.kind) == Some(&offer.id);
        let checked = self.checked_with(session, &id, &offer.kind, &document);
        let handle = self.devices.get(&id).and_then(|entry| entry.handle.clone());
        let mut taken = Taken { session: session.to_owned(), device: id, offer, document, result: Ok(()) };
        match (checked, handle) {
            (_, _) if known => self.taken(taken),
            (Err(reason), _) => {
                taken.result = Err(reason);
                self.taken(taken);
            }
            (_, None) => {
                taken.result = Err("the driver of this device is not running".into());
                self.taken(taken);
            }
            (Ok(text), Some(handle)) => {
                let report = self.report.clone();
                tokio::spawn(async move {
                    let result = handle.ask(|reply| Input::Configure(text, reply)).await;
                    taken.result = result.unwrap_or(Err("the device was stopped".into()));
                    // The supervisor may be gone at the end of the program.
                    let _ = report.send(Report::Taken(taken)).await;
                });
            }
        }
    }

    /// Notes and reports what became of an offered configuration.
    pub(super) fn taken(&mut self, taken: Taken) {
        let Taken { session, device, offer, document, result } = taken;
        self.offers.remove(&pending(&session, &device, &offer));
        match &result {
            Ok(()) => {
                self.memory.apply(&device, &session, &offer, document);
                self.memory.save();
                tracing::info!(device, session, "configuration {} of the cloud applied", offer.id);
            }
            Err(reason) => {
                tracing::warn!(device, session, "configuration {} of the cloud refused: {reason}", offer.id);
            }
        }
        self.report_applied(&session, &device, &offer, result.as_ref().map(|&()| ()).map_err(String::as_str));
        // A session that reconnects asks with what is applied now.
        self.publish();
        match self.waiting.get_mut(&device).and_then(VecDeque::pop_front) {
            Some((session, offer, document)) => {
                self.take_configuration(&session, &DeviceId::new(&device), offer, document);
            }
            None => drop(self.waiting.remove(&device)),
        }
    }

    /// Tells one cloud what became of its offer.
    pub(super) fn report_applied(&self, session: &str, device: &str, offer: &Offer, result: Result<(), &str>) {
        let Some(entry) = self.devices.get(device) else { return };
        let outlet = self.specification(device, &entry.config, &entry.statistics).outlet;
        outlet.answer(Some(session), now(), &Uplink::Applied { offer, result });
    }

    /// Ends an offer without a word.
    pub(super) fn forget_offer(&mut self, session: &str, device: &str, offer: &Offer) {
        self.offers.remove(&pending(session, device, offer));
    }

    /// A device's configuration: of the file, and over it those of clouds.
    pub(super) fn configuration(&self, id: &str, device: &crate::config::Device) -> Map<String, Json> {
        let mut configuration = super::start::configuration_of(device);
        let sessions = self.config.sessions_of(device);
        for (_, kind, document) in self.memory.documents(id).filter(|(name, ..)| sessions.contains(name.as_str())) {
            lay_over(&mut configuration, &kind, document);
        }
        configuration
    }

    /// The configuration that a device would have with a new document of a
    /// session, as the driver gets it; an error says why it cannot be.
    fn checked_with(&self, session: &str, id: &str, kind: &OfferKind, document: &Json) -> Result<String, String> {
        let entry = self.devices.get(id).ok_or("the device is not configured")?;
        let handle = entry.handle.as_ref().ok_or("the driver of this device is not running")?;
        if !document.is_object() {
            return Err("expected an object {\"<bucket>\": {\"<parameter>\": value}}".into());
        }
        let mut configuration = super::start::configuration_of(&entry.config);
        let sessions = self.config.sessions_of(&entry.config);
        for (of, other, old) in self.memory.documents(id) {
            let is_replaced = of == session && other == *kind;
            if sessions.contains(of.as_str()) && !is_replaced {
                lay_over(&mut configuration, &other, old);
            }
        }
        lay_over(&mut configuration, kind, document);
        let manifest = std::sync::Arc::clone(&handle.status.borrow().driver.manifest);
        manifest.check_configuration(configuration).map(|checked| Json::Object(checked).to_string())
    }
}

fn pending(session: &str, device: &str, offer: &Offer) -> Pending {
    (session.to_owned(), device.to_owned(), offer.kind.clone(), offer.id.clone())
}

/// Lays a cloud's document over a configuration: parameter by parameter.
fn lay_over(configuration: &mut Map<String, Json>, kind: &OfferKind, document: &Json) {
    let named;
    let buckets = match (kind, document) {
        (OfferKind::Configuration(Some(name)), document) => {
            named = Map::from_iter([(name.clone(), document.clone())]);
            &named
        }
        (_, Json::Object(buckets)) => buckets,
        _ => return,
    };
    for (bucket, parameters) in buckets {
        match (configuration.get_mut(bucket), parameters) {
            (Some(Json::Object(old)), Json::Object(new)) => old.extend(new.clone()),
            _ => drop(configuration.insert(bucket.clone(), parameters.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_counts_for_what_it_names_and_a_named_one_for_its_bucket() {
        let mut configuration = json!({"a": {"x": 1, "y": 2}, "b": {"z": 3}}).as_object().cloned().unwrap();
        lay_over(&mut configuration, &OfferKind::Configuration(None), &json!({"a": {"y": 5}, "c": {"n": true}}));
        lay_over(&mut configuration, &OfferKind::Configuration(Some("b".into())), &json!({"z": 4}));
        assert_eq!(Json::Object(configuration), json!({"a": {"x": 1, "y": 5}, "b": {"z": 4}, "c": {"n": true}}));
    }
}
