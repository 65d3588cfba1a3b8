//! What is kept of what drivers do, and how new versions are tried on it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::{Device, Size, Span};

/// The recording of what crosses between drivers and the host.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tapes {
    /// Memory for the tapes of all devices, which share it in equal parts; one
    /// whose part is less than 32 KiB has none. 0 turns them off.
    pub memory: Size,
    /// How far back a tape goes at most.
    pub age: Span,
}

impl Default for Tapes {
    fn default() -> Self {
        Tapes { memory: Size(16 << 20), age: Span(Duration::from_secs(3600)) }
    }
}

/// What is done when a new version of a driver does something else than the old
/// one on what the device has done lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateMode {
    /// It is not tried.
    Off,
    /// The receipt says so.
    #[default]
    Warn,
    /// It is refused, unless somebody accepts the difference.
    Refuse,
}

/// How a new version is tried; what is not said is as for all.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// What a difference does.
    pub mode: Option<GateMode>,
    /// How far numbers may be apart, as a part of their value: 0.001 is 0.1 %.
    pub tolerance: Option<f64>,
}

/// How new versions are tried: of all drivers, and of some.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gates {
    /// What a difference does.
    pub mode: GateMode,
    /// How far numbers may be apart, as a part of their value.
    pub tolerance: f64,
    /// By the driver's name.
    pub drivers: BTreeMap<String, Gate>,
}

impl Gates {
    /// The mode and the tolerance for a device with a driver of this name.
    pub fn of(&self, device: &Device, driver: &str) -> (GateMode, f64) {
        let own = [device.gate, self.drivers.get(driver).copied()];
        let mode = own.iter().find_map(|gate| gate.as_ref()?.mode);
        let tolerance = own.iter().find_map(|gate| gate.as_ref()?.tolerance);
        (mode.unwrap_or(self.mode), tolerance.unwrap_or(self.tolerance))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn what_a_device_does_not_say_is_as_for_its_driver_and_then_as_for_all() {
        let text = "[gate]\nmode = 'refuse'\ntolerance = 0.001\n[gate.drivers.meter]\nmode = 'off'\n\
                    [devices.a]\ndriver = 'a.wasm'\n[devices.b]\ndriver = 'b.wasm'\ngate.tolerance = 0.01\n\
                    [devices.c]\ndriver = 'c.wasm'\ngate = { mode = 'warn' }\n";
        let config = Config::parse(text).unwrap();
        let of = |device: &str, driver: &str| config.gate.of(&config.devices[device], driver);
        assert_eq!(of("a", "other"), (GateMode::Refuse, 0.001));
        assert_eq!(of("a", "meter"), (GateMode::Off, 0.001));
        assert_eq!(of("b", "other"), (GateMode::Refuse, 0.01));
        assert_eq!(of("b", "meter"), (GateMode::Off, 0.01));
        assert_eq!(of("c", "meter"), (GateMode::Warn, 0.001));
    }
}
