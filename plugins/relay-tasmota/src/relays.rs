//! Which relays are on. Pure.
//!
//! A device with one relay calls it `POWER` (or `POWER1` with SetOption26),
//! one with several `POWER1`, `POWER2`, …

use std::collections::BTreeMap;

use sandgate_driver::{Attribute, attribute};
use serde_json::Value as Json;

use crate::answer::Fields;

/// As many relays as the manifest has attributes for.
pub const MOST: u8 = 8;

/// The state of each relay by its number, from 1; none for a state that is
/// neither on nor off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relays(BTreeMap<u8, Option<bool>>);

impl Relays {
    /// Finds them in the answer to `Power`, or in the `StatusSTS` of `Status 11`.
    pub fn find(fields: &Fields) -> Relays {
        let relay = |(name, value): (&String, &Json)| {
            let number = match name.strip_prefix("POWER")? {
                "" => 1,
                digits => digits.parse().ok().filter(|number| (1..=MOST).contains(number))?,
            };
            Some((number, state(value)))
        };
        Relays(fields.iter().filter_map(relay).collect())
    }

    /// The state of one relay; none when there is no such relay.
    pub fn get(&self, number: u8) -> Option<Option<bool>> {
        self.0.get(&number).copied()
    }

    /// On when any relay is on, off when all are; none when it cannot be told.
    pub fn any(&self) -> Option<bool> {
        if self.0.values().any(|state| *state == Some(true)) {
            return Some(true);
        }
        let all_known = !self.0.is_empty() && self.0.values().all(Option::is_some);
        all_known.then_some(false)
    }

    /// The telemetry: `status`, and each relay when there are several.
    pub fn telemetry(&self) -> Vec<Attribute> {
        let mut attributes = vec![attribute("status", self.any().map(word))];
        if self.0.len() > 1 {
            attributes.extend(self.0.iter().map(|(number, state)| attribute(&format!("relay_{number}"), *state)));
        }
        attributes
    }
}

/// A state as telemetry and commands show it.
pub fn word(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

/// Owners can rename ON and OFF with `StateText`; only the numbers that some
/// home servers want are understood beside them.
fn state(value: &Json) -> Option<bool> {
    let text = match value {
        Json::String(text) => text.to_ascii_lowercase(),
        other => other.to_string(),
    };
    match text.as_str() {
        "on" | "1" | "true" => Some(true),
        "off" | "0" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use sandgate_driver::Value;

    use super::*;

    fn relays(json: &str) -> Relays {
        serde_json::from_str(json).map(|fields| Relays::find(&fields)).unwrap_or_default()
    }

    #[test]
    fn one_relay_has_two_names() {
        for json in [r#"{"POWER":"ON"}"#, r#"{"POWER1":"ON","Dimmer":3}"#, r#"{"POWER":1}"#, r#"{"POWER":"on"}"#] {
            let relays = relays(json);
            assert_eq!((relays.get(1), relays.any()), (Some(Some(true)), Some(true)), "{json}");
            assert_eq!(relays.telemetry(), [attribute("status", "on")]);
        }
    }

    #[test]
    fn several_relays_are_told_one_by_one() {
        let found = relays(r#"{"POWER1":"OFF","POWER2":"ON","POWER9":"ON","PowerOnState":3,"POWERX":1}"#);
        let expected = [attribute("status", "on"), attribute("relay_1", false), attribute("relay_2", true)];
        assert_eq!(found.telemetry(), expected);
        assert_eq!(found.get(3), None);
    }

    #[test]
    fn what_is_neither_on_nor_off_is_unknown() {
        assert_eq!(relays(r#"{"POWER":"Aus"}"#).telemetry(), [attribute("status", Value::Unknown)]);
        assert_eq!(relays("{}").any(), None);
        assert_eq!(relays(r#"{"POWER1":"OFF","POWER2":"?"}"#).any(), None);
    }

    #[test]
    fn every_relay_is_declared_in_the_manifest() {
        let manifest = include_str!("../manifest.yml");
        assert!((1..=MOST).all(|number| manifest.contains(&format!("\n  relay_{number}:\n"))));
    }
}
