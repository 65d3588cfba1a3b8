//! The commands: which registers they read and write, and what they answer.

use sandgate_driver::{Attribute, Command, CommandError, result};
use serde::{Deserialize, Serialize};

use crate::problem::command_error;
use crate::setting::{Memory, Setting};

const MAX_CHARGE_CURRENT: Setting = whole("the maximum charge current", 108);
const MAX_DISCHARGE_CURRENT: Setting = whole("the maximum discharge current", 109);
const GRID_CHARGE_CURRENT: Setting = whole("the grid charge current", 128);
const GRID_CHARGE: Setting = switch("grid charging", 130);
const WORK_MODE: Setting = whole("the work mode", 142);
const SOLAR_SELL: Setting = switch("solar sell", 145);
const SHUTDOWN_SOC: Setting = whole("the shutdown charge", 115);
const RESTART_SOC: Setting = whole("the restart charge", 116);
const LOW_SOC: Setting = whole("the low-battery charge", 117);
const MAX_SELL_POWER: Setting = whole("the maximum sell power", 143);

/// All of the above: address and count.
const SETTINGS: (u16, u16) = (108, 38);

/// Limits of the public maps; a smaller model refuses or keeps its own.
const MAX_AMPS: u16 = 240;

/// The work modes by the number in the register.
const WORK_MODES: [(u16, &str); 3] = [(0, "selling_first"), (1, "zero_export_to_load"), (2, "zero_export_to_ct")];

const fn whole(name: &'static str, address: u16) -> Setting {
    Setting { name, address, mask: u16::MAX }
}

const fn switch(name: &'static str, address: u16) -> Setting {
    Setting { name, address, mask: 1 }
}

#[derive(Deserialize)]
struct Amps {
    amps: u16,
}

#[derive(Deserialize)]
struct Mode {
    mode: String,
}

#[derive(Deserialize)]
struct Enabled {
    enabled: bool,
}

#[derive(Deserialize)]
struct GridCharge {
    enabled: bool,
    amps: Option<u16>,
}

/// What a command answers that changes one thing.
#[derive(Debug, Serialize)]
struct Changed<T> {
    value: T,
    previous: T,
    changed: bool,
}

/// What `read_settings` answers.
#[derive(Debug, Serialize)]
struct Settings {
    max_charge_current: u16,
    max_discharge_current: u16,
    grid_charge_enabled: bool,
    grid_charge_current: u16,
    work_mode: Option<&'static str>,
    solar_sell: bool,
    max_sell_power: u16,
    shutdown_soc: u16,
    restart_soc: u16,
    low_soc: u16,
}

/// Carries out a command.
pub fn handle(memory: &impl Memory, command: &Command) -> Result<Vec<Attribute>, CommandError> {
    match command.name.as_str() {
        "set_max_charge_current" => set_current(memory, MAX_CHARGE_CURRENT, command.read::<Amps>()?.amps),
        "set_max_discharge_current" => set_current(memory, MAX_DISCHARGE_CURRENT, command.read::<Amps>()?.amps),
        "set_work_mode" => set_work_mode(memory, &command.read::<Mode>()?.mode),
        "set_solar_sell" => set_switch(memory, SOLAR_SELL, command.read::<Enabled>()?.enabled),
        "set_grid_charge" => {
            let GridCharge { enabled, amps } = command.read()?;
            set_grid_charge(memory, enabled, amps)
        }
        "read_settings" => read_settings(memory),
        name => Err(CommandError::Unsupported(format!("no command {name}"))),
    }
}

fn set_current(memory: &impl Memory, setting: Setting, amps: u16) -> Result<Vec<Attribute>, CommandError> {
    check_amps(amps)?;
    let change = setting.change(memory, amps)?;
    result(&Changed { value: change.now, previous: change.before, changed: change.before != change.now })
}

fn set_work_mode(memory: &impl Memory, mode: &str) -> Result<Vec<Attribute>, CommandError> {
    let Some((number, _)) = WORK_MODES.iter().find(|(_, name)| *name == mode) else {
        return Err(CommandError::InvalidArgument(format!("no work mode {mode:?}")));
    };
    let change = WORK_MODE.change(memory, *number)?;
    let (value, previous) = (work_mode(change.now), work_mode(change.before));
    result(&Changed { value, previous, changed: change.before != change.now })
}

fn set_switch(memory: &impl Memory, setting: Setting, enabled: bool) -> Result<Vec<Attribute>, CommandError> {
    let change = setting.change(memory, enabled.into())?;
    result(&Changed { value: change.now == 1, previous: change.before == 1, changed: change.before != change.now })
}

/// The current never is too high while charging is on: it is set before
/// switching on, and after switching off.
fn set_grid_charge(memory: &impl Memory, enabled: bool, amps: Option<u16>) -> Result<Vec<Attribute>, CommandError> {
    amps.map_or(Ok(()), check_amps)?;
    let set_amps = || amps.map(|amps| GRID_CHARGE_CURRENT.change(memory, amps)).transpose();
    if !enabled {
        let answer = set_switch(memory, GRID_CHARGE, false)?;
        set_amps()?;
        return Ok(answer);
    }
    set_amps()?;
    set_switch(memory, GRID_CHARGE, true)
}

fn read_settings(memory: &impl Memory) -> Result<Vec<Attribute>, CommandError> {
    let (first, count) = SETTINGS;
    let registers = memory.read(first, count).map_err(|error| command_error("reading the settings", &error))?;
    result(&Settings {
        max_charge_current: MAX_CHARGE_CURRENT.of(&registers)?,
        max_discharge_current: MAX_DISCHARGE_CURRENT.of(&registers)?,
        grid_charge_enabled: GRID_CHARGE.of(&registers)? == 1,
        grid_charge_current: GRID_CHARGE_CURRENT.of(&registers)?,
        work_mode: work_mode(WORK_MODE.of(&registers)?),
        solar_sell: SOLAR_SELL.of(&registers)? == 1,
        max_sell_power: MAX_SELL_POWER.of(&registers)?,
        shutdown_soc: SHUTDOWN_SOC.of(&registers)?,
        restart_soc: RESTART_SOC.of(&registers)?,
        low_soc: LOW_SOC.of(&registers)?,
    })
}

fn check_amps(amps: u16) -> Result<(), CommandError> {
    if amps <= MAX_AMPS {
        return Ok(());
    }
    Err(CommandError::InvalidArgument(format!("expected 0 to {MAX_AMPS} A, found {amps}")))
}

/// The name of a work mode; none for a number that no source explains.
fn work_mode(number: u16) -> Option<&'static str> {
    WORK_MODES.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use sandgate_driver::{Value, attribute};

    use super::*;
    use crate::setting::tests::Simulated;

    #[test]
    fn a_current_above_the_limit_is_refused_before_anything_is_read() {
        let memory = Simulated::new(&[]);
        let error = set_current(&memory, MAX_CHARGE_CURRENT, 241);
        assert_eq!(error, Err(CommandError::InvalidArgument("expected 0 to 240 A, found 241".into())));
        assert!(set_grid_charge(&memory, true, Some(300)).is_err());
        assert_eq!(memory.writes(), []);
    }

    #[test]
    fn a_change_tells_before_and_after() {
        let memory = Simulated::new(&[(109, 40), (142, 7)]);
        let changed = [attribute("value", 60), attribute("previous", 40), attribute("changed", true)];
        assert_eq!(sorted(set_current(&memory, MAX_DISCHARGE_CURRENT, 60)), sorted(Ok(changed.into())));
        let changed = [
            attribute("value", "zero_export_to_ct"),
            attribute("previous", Value::Unknown),
            attribute("changed", true),
        ];
        assert_eq!(sorted(set_work_mode(&memory, "zero_export_to_ct")), sorted(Ok(changed.into())));
        assert_eq!(memory.writes(), [(109, 60), (142, 2)]);
    }

    #[test]
    fn grid_charging_sets_its_current_while_it_is_off() {
        let memory = Simulated::new(&[(128, 100), (130, 0)]);
        assert!(set_grid_charge(&memory, true, Some(40)).is_ok());
        assert_eq!(memory.writes(), [(128, 40), (130, 1)]);
        assert!(set_grid_charge(&memory, false, Some(80)).is_ok());
        assert_eq!(memory.writes().get(2..), Some([(130, 0), (128, 80)].as_slice()));
        assert!(set_grid_charge(&memory, true, None).is_ok());
        assert_eq!(memory.writes().get(4..), Some([(130, 1)].as_slice()));
    }

    #[test]
    fn settings_are_read_in_one_request() {
        let registers = [(108, 120), (109, 130), (115, 10), (116, 20), (117, 15), (128, 50), (130, 1), (142, 1)];
        let memory = Simulated::new(&[registers.as_slice(), &[(143, 8000), (145, 1)]].concat());
        let answer = sorted(read_settings(&memory));
        for expected in [
            attribute("max_charge_current", 120),
            attribute("max_discharge_current", 130),
            attribute("grid_charge_enabled", true),
            attribute("grid_charge_current", 50),
            attribute("work_mode", "zero_export_to_load"),
            attribute("solar_sell", true),
            attribute("max_sell_power", 8000),
            attribute("shutdown_soc", 10),
            attribute("restart_soc", 20),
            attribute("low_soc", 15),
        ] {
            assert!(answer.contains(&expected), "{expected:?}");
        }
    }

    fn sorted(answer: Result<Vec<Attribute>, CommandError>) -> Vec<Attribute> {
        let mut attributes = answer.unwrap_or_default();
        attributes.sort_by(|one, other| one.name.cmp(&other.name));
        attributes
    }
}
