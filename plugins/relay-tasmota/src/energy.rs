//! What the energy chip measures, on devices that have one. Pure.
//!
//! Devices with several channels or phases send arrays where others send
//! numbers.

use sandgate_driver::{Attribute, attribute};
use serde::Serialize;
use serde_json::Value as Json;

use crate::answer::Fields;

/// The readings; none where the device says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Energy {
    /// W, all channels together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<f64>,
    /// V, of the first channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub voltage: Option<f64>,
    /// A, all channels together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<f64>,
    /// Wh, all channels together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_total: Option<f64>,
}

impl Energy {
    /// Finds them in the answer to `Status 10`; none without an energy chip.
    pub fn find(fields: &Fields) -> Option<Energy> {
        let energy = fields.get("StatusSNS")?.get("ENERGY")?;
        let sum = |name: &str| {
            let numbers = numbers(energy.get(name)?);
            (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>())
        };
        Some(Energy {
            power: sum("Power").map(tidy),
            voltage: energy.get("Voltage").and_then(|voltage| numbers(voltage).first().copied()),
            current: sum("Current").map(tidy),
            // Tasmota counts in kWh.
            energy_total: sum("Total").map(|total| tidy(total * 1000.0)),
        })
    }

    /// The telemetry: what is there.
    pub fn telemetry(&self) -> impl Iterator<Item = Attribute> {
        let Energy { power, voltage, current, energy_total } = *self;
        let all = [("power", power), ("voltage", voltage), ("current", current), ("energy_total", energy_total)];
        all.into_iter().filter_map(|(name, value)| value.map(|value| attribute(name, value)))
    }
}

/// The finite numbers in a number, an array of them, or a text that is one.
fn numbers(json: &Json) -> Vec<f64> {
    let number = |json: &Json| {
        let number = json.as_f64().or_else(|| json.as_str()?.trim().parse().ok());
        number.filter(|number: &f64| number.is_finite())
    };
    match json {
        Json::Array(list) => list.iter().filter_map(number).collect(),
        other => number(other).into_iter().collect(),
    }
}

/// Sums and products of decimal numbers, without the noise of binary ones.
/// Tasmota sends at most five decimals.
fn tidy(value: f64) -> f64 {
    (value * 1e5).round() / 1e5
}

#[cfg(test)]
mod tests {
    use super::*;

    fn energy(json: &str) -> Option<Energy> {
        serde_json::from_str(json).ok().and_then(|fields| Energy::find(&fields))
    }

    #[test]
    fn a_single_channel_sends_numbers() {
        let found = energy(
            r#"{"StatusSNS":{"Time":"2026-01-01T00:00:00","ENERGY":{"Total":6.404,"Power":2629,"Voltage":226,"Current":11.677}}}"#,
        );
        let expected =
            Energy { power: Some(2629.0), voltage: Some(226.0), current: Some(11.677), energy_total: Some(6404.0) };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn several_channels_are_added_up() {
        let found = energy(
            r#"{"StatusSNS":{"ENERGY":{"Total":[0.1,0.2],"Power":[10,5.5],"Voltage":[230,231],"Current":[0.1,0.2]}}}"#,
        );
        let expected =
            Energy { power: Some(15.5), voltage: Some(230.0), current: Some(0.3), energy_total: Some(300.0) };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn what_is_missing_or_odd_is_left_out() {
        assert_eq!(energy(r#"{"StatusSNS":{"Time":"x"}}"#), None);
        assert_eq!(energy(r#"{"StatusSTS":{}}"#), None);
        assert_eq!(energy(r#"{"StatusSNS":3}"#), None);
        let found = energy(r#"{"StatusSNS":{"ENERGY":{"Power":"12.5","Voltage":null,"Current":[],"Total":{}}}}"#);
        assert_eq!(found, Some(Energy { power: Some(12.5), ..Energy::default() }));
        let names: Vec<String> = found.iter().flat_map(Energy::telemetry).map(|attribute| attribute.name).collect();
        assert_eq!(names, ["power"]);
    }

    #[test]
    fn every_reading_is_declared_in_the_manifest() {
        let manifest = include_str!("../manifest.yml");
        let all = Energy { power: Some(1.0), voltage: Some(1.0), current: Some(1.0), energy_total: Some(1.0) };
        assert!(all.telemetry().all(|attribute| manifest.contains(&format!("\n  {}:\n", attribute.name))));
    }
}
