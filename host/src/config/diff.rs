//! What changed between two configurations, as a list of steps.
//!
//! A pure function; the supervisor carries the steps out while the rest runs on.

use std::fmt;

use super::{Config, Device};

/// One step from the running configuration to the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The device is new, or it needs a fresh start: other driver file,
    /// grants, limits, type or session, or a bus it uses changed.
    StartDevice(String),
    /// The device is gone.
    StopDevice(String),
    /// Only its configuration changed: `configure` is called.
    ConfigureDevice(String),
    /// Only the driver file changed: a swap.
    SwapDriver(String),
    /// The bus is new or changed.
    OpenBus(String),
    /// The bus is gone.
    CloseBus(String),
    /// This part is read at start only; the text names it.
    NeedsRestart(String),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::StartDevice(id) => write!(f, "start device {id}"),
            Change::StopDevice(id) => write!(f, "stop device {id}"),
            Change::ConfigureDevice(id) => write!(f, "configure device {id}"),
            Change::SwapDriver(id) => write!(f, "swap the driver of device {id}"),
            Change::OpenBus(name) => write!(f, "open bus {name}"),
            Change::CloseBus(name) => write!(f, "close bus {name}"),
            Change::NeedsRestart(part) => write!(f, "{part} changed"),
        }
    }
}

/// Lists the steps that lead from `old` to `new`: stops first, then buses,
/// then starts.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    if old.state != new.state {
        changes.push(Change::NeedsRestart("state".into()));
    }
    if old.gateway != new.gateway {
        changes.push(Change::NeedsRestart("gateway".into()));
    }
    if old.tapes != new.tapes {
        changes.push(Change::NeedsRestart("tapes".into()));
    }
    if old.sessions != new.sessions {
        changes.push(Change::NeedsRestart("sessions".into()));
    }
    changes.extend(missing(&old.devices, &new.devices).map(Change::StopDevice));
    changes.extend(missing(&old.buses, &new.buses).map(Change::CloseBus));
    let changed_bus = |name: &String| old.buses.get(name) != new.buses.get(name);
    changes.extend(new.buses.keys().filter(|name| changed_bus(name)).cloned().map(Change::OpenBus));

    for (id, device) in &new.devices {
        let Some(before) = old.devices.get(id) else {
            changes.push(Change::StartDevice(id.clone()));
            continue;
        };
        if device.grants.lines().any(|(_, _, bus)| changed_bus(bus)) {
            changes.push(Change::StartDevice(id.clone()));
            continue;
        }
        // How new versions are tried is looked at when one comes.
        let mut same_gate = Device::clone(before);
        same_gate.gate = device.gate;
        if same_gate == **device {
            continue;
        }
        let mut same_file = Device::clone(before);
        same_file.driver.clone_from(&device.driver);
        let mut same_configuration = Device::clone(before);
        same_configuration.configuration.clone_from(&device.configuration);
        if same_file == **device {
            changes.push(Change::SwapDriver(id.clone()));
        } else if same_configuration == **device {
            changes.push(Change::ConfigureDevice(id.clone()));
        } else {
            changes.push(Change::StartDevice(id.clone()));
        }
    }
    changes
}

fn missing<'a, T>(
    old: &'a std::collections::BTreeMap<String, T>,
    new: &'a std::collections::BTreeMap<String, T>,
) -> impl Iterator<Item = String> + 'a {
    old.keys().filter(|name| !new.contains_key(*name)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#"
        [buses.line.modbus_tcp]
        address = "10.0.0.1:502"
        [devices.a]
        driver = "a.wasm"
        [devices.b]
        driver = "b.wasm"
        grants.modbus.main = "line"
    "#;

    fn check(new: &str, expected: &[Change]) {
        let old = Config::parse(BASE).unwrap();
        let new = Config::parse(new).unwrap();
        assert_eq!(diff(&old, &new), expected);
    }

    #[test]
    fn nothing_changes_when_only_the_layout_of_the_file_does() {
        check(&BASE.replace("        ", ""), &[]);
    }

    #[test]
    fn a_device_comes_and_another_goes() {
        let new = BASE.replace("[devices.a]", "[devices.c]");
        check(&new, &[Change::StopDevice("a".into()), Change::StartDevice("c".into())]);
    }

    #[test]
    fn a_new_file_is_a_swap_and_new_configuration_is_not_a_restart() {
        check(&BASE.replace("a.wasm", "a2.wasm"), &[Change::SwapDriver("a".into())]);
        let new = format!("{BASE}configuration.line.unit = 3");
        check(&new, &[Change::ConfigureDevice("b".into())]);
    }

    #[test]
    fn another_way_of_trying_new_versions_starts_nothing_and_keeps_the_tape() {
        check(&BASE.replace("a.wasm\"", "a.wasm\"\n        gate.mode = \"refuse\""), &[]);
        check(&format!("[gate]\nmode = \"off\"\n{BASE}"), &[]);
    }

    #[test]
    fn a_changed_grant_or_bus_restarts_the_device_that_uses_it() {
        let new = BASE.replace(".main", ".other");
        check(&new, &[Change::StartDevice("b".into())]);
        let new = BASE.replace("10.0.0.1", "10.0.0.2");
        check(&new, &[Change::OpenBus("line".into()), Change::StartDevice("b".into())]);
    }
}
