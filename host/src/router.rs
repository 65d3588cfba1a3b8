//! Where messages go: the way up from a device to its outboxes, and the table
//! from a cloud's channel to the device behind it.
//!
//! Immutable data: built from the configuration, replaced as a whole.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;
use tokio::sync::mpsc;

use crate::clock::Moment;
use crate::cloud::Channel;
use crate::message::{Attribute, DeviceId, SessionName, Uplink};
use crate::outbox::{Class, Outbox};
use crate::question::Question;
use crate::upload::BinaryData;

/// Every message is checked for size before; this is the last line of defence.
const MAX_PAYLOAD: usize = 1 << 20;

/// The gateway's own queue in an outbox; no device id has parentheses.
pub const GATEWAY: &str = "(gateway)";

/// One way up: a channel of a session.
#[derive(Clone)]
pub struct Route {
    /// The session's name.
    pub session: SessionName,
    /// The device's address in the cloud.
    pub channel: Channel,
    /// Where a message waits for the session.
    pub outbox: Arc<Outbox>,
    /// Where questions to the cloud go; none when it answers none.
    pub questions: Option<mpsc::Sender<Question>>,
    /// Where binary data goes; none when the cloud takes none.
    pub binary_data: Option<Arc<BinaryData>>,
}

/// All ways up of one device.
#[derive(Clone)]
pub struct Outlet {
    /// The device.
    pub device: DeviceId,
    /// Its channels, one a session.
    pub routes: Vec<Route>,
}

impl Outlet {
    /// Encodes a message for each session and puts it into its outbox.
    pub fn send(&self, uplink: &Uplink<'_>) {
        let moment = Moment::now();
        for Route { channel, outbox, .. } in &self.routes {
            send(channel, outbox, &self.device, moment, uplink);
        }
    }

    /// Waits until all that was sent so far survives a power cut. An error says
    /// in which session it does not, and why.
    pub async fn flush(&self) -> Result<(), String> {
        for Route { session, outbox, .. } in &self.routes {
            outbox.flush().await.map_err(|problem| format!("session {session}: {problem}"))?;
        }
        Ok(())
    }

    /// The same without hurry: others come along.
    pub async fn settle(&self) -> Result<(), String> {
        for Route { outbox, .. } in &self.routes {
            outbox.settle().await?;
        }
        Ok(())
    }

    /// The device's address in a session.
    pub fn channel(&self, session: &SessionName) -> Option<&Channel> {
        self.routes.iter().find(|route| route.session == *session).map(|route| &route.channel)
    }

    /// Encodes a message for the one session that waits for it; what was asked
    /// at the gateway itself is answered there.
    pub fn answer(&self, session: Option<&SessionName>, uplink: &Uplink<'_>) {
        let mut routes = self.routes.iter();
        if let Some(route) = session.and_then(|session| routes.find(|route| route.session == *session)) {
            send(&route.channel, &route.outbox, &self.device, Moment::now(), uplink);
        }
    }
}

/// The one way up, whoever sends: encodes a message for a channel and puts it
/// into the session's outbox.
pub fn send(channel: &Channel, outbox: &Outbox, device: &DeviceId, moment: Moment, uplink: &Uplink<'_>) {
    let class = match uplink {
        Uplink::Log { .. } => Class::Log,
        Uplink::Telemetry { tells_alerts: false, .. } => Class::Telemetry,
        // An alert that came and went in an outage is the last thing to be missed.
        Uplink::Telemetry { tells_alerts: true, .. } | Uplink::Properties { .. } | Uplink::Applied { .. } => {
            Class::Keep
        }
        // In the order of the command's progress.
        Uplink::CommandLog { .. } | Uplink::CommandResult { .. } => Class::Answer,
    };
    let set = match uplink {
        Uplink::Properties { attributes, .. } => Some(set_of(attributes)),
        _ => None,
    };
    for publication in channel.encoder.encode(uplink) {
        // What no broker takes would break the connection again and again.
        if publication.payload.len() > MAX_PAYLOAD {
            let (device, size) = (device.as_str(), publication.payload.len());
            tracing::error!(device, "dropped a message of {size} bytes; expected at most {MAX_PAYLOAD}");
            continue;
        }
        match set {
            Some(set) => outbox.append_properties(device, set, moment, publication),
            None => outbox.append(device, class, moment, publication),
        }
    }
}

/// A number that stands for the names of properties, whatever their order.
fn set_of(attributes: &[Attribute]) -> u64 {
    let mut names: Vec<&str> = attributes.iter().map(|attribute| attribute.name.as_str()).collect();
    names.sort_unstable();
    FxBuildHasher.hash_one(names)
}

/// Who is behind a channel of one session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Recipient {
    /// The gateway itself.
    Gateway,
    /// A device.
    Device(DeviceId),
}

/// Channels and recipients of one session; clones share them.
#[derive(Clone, Default)]
pub struct Table(Arc<Channels>);

#[derive(Default)]
struct Channels {
    recipients: HashMap<String, Recipient>,
    channels: HashMap<Recipient, Channel>,
}

impl Table {
    /// The table of these channels.
    pub fn new(channels: impl Iterator<Item = (Recipient, Channel)>) -> Self {
        let channels: HashMap<_, _> = channels.collect();
        let recipients = channels.iter().map(|(recipient, channel)| (channel.name.clone(), recipient.clone()));
        Table(Arc::new(Channels { recipients: recipients.collect(), channels }))
    }

    /// Who is behind a channel.
    pub fn find(&self, channel: &str) -> Option<&Recipient> {
        self.0.recipients.get(channel)
    }

    /// The channel of a recipient.
    pub fn channel(&self, recipient: &Recipient) -> Option<&Channel> {
        self.0.channels.get(recipient)
    }

    /// The names of all channels.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.0.recipients.keys()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cloud::Cloud;
    use crate::cloud::enapter::Enapter;
    use crate::config::PropertiesTopic;
    use crate::message::{Alerts, CommandError, Severity};
    use crate::outbox::Bounds;
    use crate::outbox::OwnBounds;

    fn cloud() -> Enapter {
        Enapter {
            hardware_id: "S".into(),
            channel_id: "s".into(),
            properties_topic: PropertiesTopic::Properties,
            needs_ucm: false,
        }
    }

    fn route(session: &str) -> Route {
        let bounds = Bounds { bytes: 1 << 20, age: Duration::from_secs(60), ..Bounds::default() };
        let channel = cloud().device(&DeviceId::new("d"), None).unwrap();
        let outbox = Arc::new(Outbox::new(bounds));
        Route { session: SessionName::new(session), channel, outbox, questions: None, binary_data: None }
    }

    fn waiting(outlet: &Outlet) -> Vec<usize> {
        outlet.routes.iter().map(|route| route.outbox.stats().waiting).collect()
    }

    #[test]
    fn a_measurement_goes_to_every_session_and_an_answer_to_the_one_that_waits() {
        let outlet = Outlet { device: DeviceId::new("d"), routes: vec![route("a"), route("b")] };
        outlet.send(&Uplink::Telemetry {
            time: 0,
            is_own: true,
            attributes: &[],
            alerts: &Alerts::None,
            tells_alerts: false,
        });
        assert_eq!(waiting(&outlet), [1, 1]);
        let result = Err(CommandError::Busy("x".into()));
        let answer = Uplink::CommandResult { command: "1", result: &result };
        outlet.answer(Some(&SessionName::new("b")), &answer);
        assert_eq!(waiting(&outlet), [1, 2]);
        // Asked at the gateway itself, or by a session that is no longer configured.
        outlet.answer(None, &answer);
        outlet.answer(Some(&SessionName::new("c")), &answer);
        assert_eq!(waiting(&outlet), [1, 2]);
        assert!(
            [("a", true), ("c", false)]
                .iter()
                .all(|(name, is_there)| outlet.channel(&SessionName::new(name)).is_some() == *is_there)
        );
    }

    #[test]
    fn a_sample_that_tells_of_an_alert_outlives_those_that_do_not_and_log_lines() {
        let device = DeviceId::new("d");
        let outlet = Outlet { device: device.clone(), routes: vec![route("a")] };
        let hot = Alerts::Active(vec![("hot".into(), None)]);
        for tells_alerts in [true, false, false, false, false] {
            outlet.send(&Uplink::Telemetry { time: 0, is_own: true, attributes: &[], alerts: &hot, tells_alerts });
            outlet.send(&Uplink::Log { time: 0, severity: Severity::Info, text: "a line", persist: false });
        }
        let outbox = &outlet.routes[0].outbox;
        let bytes = outbox.stats().bytes / 10;
        let own = OwnBounds { bytes: Some(bytes * 3 / 2), age: None };
        outbox.bound_devices([(device.clone(), own)].into(), Moment::now());
        assert_eq!(waiting(&outlet), [1]);
        // The first of all that were sent.
        assert_eq!(outbox.take(tokio::time::Instant::now()).unwrap().parts[0].0, 0);
    }

    #[test]
    fn what_no_broker_takes_is_not_sent_at_all() {
        let outlet = Outlet { device: DeviceId::new("d"), routes: vec![route("a")] };
        let text = "x".repeat(MAX_PAYLOAD + 1);
        outlet.send(&Uplink::Log { time: 0, severity: Severity::Info, text: &text, persist: false });
        assert_eq!(waiting(&outlet), [0]);
    }

    #[test]
    fn a_table_finds_who_is_behind_a_channel_and_the_channel_of_each() {
        let ids = ["d", "e"].map(DeviceId::new);
        let channels = ids.iter().map(|id| (Recipient::Device(id.clone()), cloud().device(id, None).unwrap()));
        let gateway = cloud().gateway().map(|channel| (Recipient::Gateway, channel));
        let table = Table::new(channels.chain(gateway));
        assert_eq!(table.names().count(), 3);
        for recipient in ids.iter().cloned().map(Recipient::Device).chain([Recipient::Gateway]) {
            let channel = table.channel(&recipient).unwrap();
            assert_eq!(table.find(&channel.name), Some(&recipient));
        }
        assert_eq!(table.find("nobody"), None);
    }
}
