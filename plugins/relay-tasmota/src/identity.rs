//! Which device it is: read with `Status 2` and `Status 5`, published as
//! properties, handed over in a swap so that the next version need not ask.

use sandgate_driver::{Attribute, attribute};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::answer::Fields;

/// What a device says about itself; none where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    hardware: Option<String>,
    firmware: Option<String>,
    mac: Option<String>,
    hostname: Option<String>,
    ip_address: Option<String>,
}

/// What a version of the driver leaves to the next.
#[derive(Deserialize, Serialize)]
pub struct Memory {
    /// Where the device is.
    url: String,
    /// Which one it is.
    pub identity: Identity,
    /// Whether it measures energy.
    pub has_energy: Option<bool>,
}

impl Identity {
    /// Reads the answers to `Status 2` and `Status 5`.
    pub fn find(firmware: &Fields, network: &Fields) -> Identity {
        let firmware = firmware.get("StatusFWR");
        let network = network.get("StatusNET");
        // Devices with a cable may have two networks; the one in use has an address.
        let in_use = |network: &&Json| text(Some(network), "IPAddress").is_some_and(|address| address != "0.0.0.0");
        let network = network.filter(in_use).or_else(|| network?.get("Ethernet").filter(in_use)).or(network);
        Identity {
            hardware: text(firmware, "Hardware"),
            firmware: text(firmware, "Version"),
            mac: text(network, "Mac"),
            hostname: text(network, "Hostname"),
            ip_address: text(network, "IPAddress"),
        }
    }

    /// The properties to publish: what is known. Tasmota has no serial
    /// number; the MAC address is the closest there is.
    pub fn properties(&self) -> Vec<Attribute> {
        let known = [
            ("model", &self.hardware),
            ("firmware_version", &self.firmware),
            ("serial_number", &self.mac),
            ("hostname", &self.hostname),
            ("ip_address", &self.ip_address),
        ];
        let known = known.into_iter().filter_map(|(name, value)| Some(attribute(name, value.as_deref()?)));
        [attribute("vendor", "Tasmota")].into_iter().chain(known).collect()
    }
}

fn text(json: Option<&Json>, name: &str) -> Option<String> {
    json?.get(name)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

impl Memory {
    /// Packs what is known; nothing when the device never said who it is.
    pub fn pack(url: &str, identity: Option<&Identity>, has_energy: Option<bool>) -> Vec<u8> {
        let memory = identity.map(|identity| Memory { url: url.to_owned(), identity: identity.clone(), has_energy });
        memory.and_then(|memory| serde_json::to_vec(&memory).ok()).unwrap_or_default()
    }

    /// Unpacks what is known of a device. Other versions may pack otherwise
    /// and the device may be another one by now: then it is asked again.
    pub fn unpack(state: &[u8], url: &str) -> Option<Memory> {
        serde_json::from_slice(state).ok().filter(|memory: &Memory| memory.url == url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(firmware: &str, network: &str) -> Identity {
        let fields = |json: &str| serde_json::from_str(json).unwrap_or_default();
        Identity::find(&fields(firmware), &fields(network))
    }

    #[test]
    fn properties_hold_what_the_device_says() {
        let found = identity(
            r#"{"StatusFWR":{"Version":"14.2.0(tasmota)","Hardware":"ESP8266EX","Boot":31}}"#,
            r#"{"StatusNET":{"Hostname":"lamp","IPAddress":"10.0.0.7","Mac":"AA:BB:CC:00:47:11","Webserver":2}}"#,
        );
        let expected = [
            ("vendor", "Tasmota"),
            ("model", "ESP8266EX"),
            ("firmware_version", "14.2.0(tasmota)"),
            ("serial_number", "AA:BB:CC:00:47:11"),
            ("hostname", "lamp"),
            ("ip_address", "10.0.0.7"),
        ];
        assert_eq!(found.properties(), expected.map(|(name, value)| attribute(name, value)));
        assert_eq!(identity("{}", r#"{"StatusNET":7}"#).properties(), [attribute("vendor", "Tasmota")]);
    }

    #[test]
    fn a_device_on_a_cable_tells_the_cable() {
        let network =
            r#"{"StatusNET":{"IPAddress":"0.0.0.0","Mac":"A","Ethernet":{"IPAddress":"10.0.0.8","Mac":"B"}}}"#;
        let found = identity("{}", network);
        assert_eq!((found.mac.as_deref(), found.ip_address.as_deref()), (Some("B"), Some("10.0.0.8")));
    }

    #[test]
    fn a_swap_keeps_the_identity_of_the_same_device_only() {
        let state = Memory::pack("http://a", Some(&Identity::default()), Some(true));
        assert_eq!(Memory::unpack(&state, "http://a").map(|memory| memory.has_energy), Some(Some(true)));
        assert!(Memory::unpack(&state, "http://b").is_none());
        assert!(Memory::unpack(b"{}", "http://a").is_none());
        assert!(Memory::pack("http://a", None, None).is_empty());
    }

    #[test]
    fn every_property_is_declared_in_the_manifest() {
        let manifest = include_str!("../manifest.yml");
        let some = || Some(String::from("x"));
        let all = Identity { hardware: some(), firmware: some(), mac: some(), hostname: some(), ip_address: some() };
        assert!(all.properties().iter().all(|property| manifest.contains(&format!("\n  {}:\n", property.name))));
    }
}
