//! Taking over the configurations that clouds offer to devices.
//!
//! A configuration of the cloud lies over the one in the file: what it names
//! counts, the rest stays. It is kept over restarts. A named one is the
//! bucket of that name.

use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::offers::Offered;
use super::{Report, Supervisor};
use crate::device::{Configuration, DeviceHandle, Input, Phase};
use crate::message::{Offer, OfferKind, SessionName, Uplink};
use crate::session::Order;

/// What became of an offered configuration.
pub(super) struct Outcome {
    device: String,
    offered: Offered,
    /// None: the device was stopped before it could say.
    result: Option<Result<(), String>>,
}

impl Supervisor {
    /// Does what a cloud wants of the gateway.
    pub(super) fn carry_out(&mut self, order: Order) {
        match order {
            Order::Command(request) => self.gateway_command(request),
            Order::Late { device, request } => self.late_command(device.as_str(), (request, None)),
            Order::Offer { session, device, offer, document } => {
                let id = device.as_str();
                if !self.offers.begin(&session, id, &offer) {
                    return;
                }
                match offer.kind {
                    OfferKind::Configuration(_) => {
                        self.offers.queue_configuration(id, Offered { session, offer, document });
                        self.next_configuration(id);
                    }
                    OfferKind::Software => self.install_offered(&session, &device, offer, document),
                }
            }
        }
    }

    /// Gives a device the next configuration that is offered to it, unless it is
    /// busy with one or with a start.
    pub(super) fn next_configuration(&mut self, device: &str) {
        if self.devices.get(device).is_some_and(|entry| entry.work.is_start()) {
            return;
        }
        if let Some(offered) = self.offers.next_configuration(device) {
            self.offer_to_driver(device, offered);
        }
    }

    fn offer_to_driver(&mut self, id: &str, offered: Offered) {
        let Offered { session, offer, document } = &offered;
        let known = self.memory.applied(id, session).get(&offer.kind) == Some(&offer.id);
        let checked = self.checked_with(session, id, &offer.kind, document);
        let device = id.to_owned();
        match checked {
            _ if known => self.configured(Outcome { device, offered, result: Some(Ok(())) }),
            Err(reason) => self.configured(Outcome { device, offered, result: Some(Err(reason)) }),
            Ok((text, handle)) => {
                let report = self.report.clone();
                tokio::spawn(async move {
                    let result = configure(&handle, text).await;
                    // The supervisor may be gone at the end of the program.
                    let _ = report.send(Report::Configured(Outcome { device, offered, result })).await;
                });
            }
        }
    }

    /// Notes and reports what became of an offered configuration.
    pub(super) fn configured(&mut self, outcome: Outcome) {
        let Outcome { device, offered, result } = outcome;
        let Some(result) = result else {
            // It is started afresh, or gone: the next try tells.
            self.offers.retry_configuration(&device, offered);
            return self.next_configuration(&device);
        };
        let Offered { session, offer, document } = offered;
        self.offers.configuration_is_done(&device);
        self.offers.end(&session, &device, &offer);
        match &result {
            Ok(()) => {
                self.memory.apply(&device, &session, &offer, document);
                self.memory.save();
                tracing::info!(device, session = session.as_str(), "configuration {} of the cloud applied", offer.id);
            }
            Err(reason) => {
                tracing::warn!(
                    device,
                    session = session.as_str(),
                    "configuration {} of the cloud refused: {reason}",
                    offer.id
                );
            }
        }
        self.report_applied(&session, &device, &offer, result.as_ref().map(|&()| ()).map_err(String::as_str));
        // A session that reconnects asks with what is applied now.
        self.publish_soon();
        self.next_configuration(&device);
    }

    /// Tells one cloud what became of its offer.
    pub(super) fn report_applied(&self, session: &SessionName, device: &str, offer: &Offer, result: Result<(), &str>) {
        let Some(entry) = self.devices.get(device) else { return };
        let outlet = self.specification(device, &entry.config, &entry.statistics).capabilities.outlet;
        outlet.answer(Some(session), &Uplink::Applied { offer, result });
    }

    /// A device's configuration: of the file, and over it those of clouds.
    pub(super) fn configuration(&self, id: &str, device: &crate::config::Device) -> Configuration {
        self.laid_over(id, device, |_, _| true)
    }

    /// The same, with those documents only that count.
    fn laid_over(
        &self,
        id: &str,
        device: &crate::config::Device,
        counts: impl Fn(&str, &OfferKind) -> bool,
    ) -> Configuration {
        let mut configuration = Configuration::own(device.configuration.buckets());
        let sessions = self.config.sessions_of(device);
        for (session, kind, document) in self.memory.documents(id) {
            if sessions.contains(session.as_str()) && counts(session, &kind) {
                lay_over(&mut configuration.whole, &kind, document);
            }
        }
        configuration
    }

    /// The configuration that a device would have with a new document of a
    /// session, as the driver gets it, and who gets it; an error says why it
    /// cannot be.
    fn checked_with(
        &self,
        session: &SessionName,
        id: &str,
        kind: &OfferKind,
        document: &Json,
    ) -> Result<(String, DeviceHandle), String> {
        let entry = self.devices.get(id).ok_or("the device is not configured")?;
        let handle = entry.handle.clone().filter(DeviceHandle::is_alive);
        let handle = handle.ok_or("the driver of this device is not running")?;
        if !document.is_object() {
            return Err("expected an object {\"<bucket>\": {\"<parameter>\": value}}".into());
        }
        let is_other = |of: &str, other: &OfferKind| of != session.as_str() || other != kind;
        let mut configuration = self.laid_over(id, &entry.config, is_other).whole;
        lay_over(&mut configuration, kind, document);
        let manifest = Arc::clone(&handle.status.borrow().driver.manifest);
        let checked = manifest.check_configuration(configuration).map_err(|wrong| wrong.to_string())?;
        Ok((Json::Object(checked).to_string(), handle))
    }
}

/// Gives a device a configuration. One whose driver does not run is started
/// with it, and left with the one before when that does not help. None: the
/// device was stopped.
async fn configure(handle: &DeviceHandle, text: String) -> Option<Result<(), String>> {
    let before = handle.status.borrow().clone();
    match before.phase {
        Phase::Running => handle.ask(|reply| Input::Configure(text, reply)).await,
        Phase::Failed => Some(Err(not_running(before.problem))),
        Phase::Restarting | Phase::Loading | Phase::Compiling => {
            handle.ask(|reply| Input::Restart(Some(text), reply)).await?;
            let now = handle.status.borrow().clone();
            if now.phase == Phase::Running {
                return Some(Ok(()));
            }
            handle.ask(|reply| Input::Configure(before.configuration.to_string(), reply)).await?.ok();
            Some(Err(not_running(now.problem)))
        }
    }
}

fn not_running(problem: Option<String>) -> String {
    format!("the driver is not running: {}", problem.unwrap_or_default())
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
