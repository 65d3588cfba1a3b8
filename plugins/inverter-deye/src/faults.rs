//! Warning and fault bits, and the alerts that they stand for. Pure.
//!
//! Registers 553 and 554 hold warnings. Fault Fn stands in register
//! 555 + (n − 1) / 16, bit (n − 1) % 16: 555 to 558 hold F01 to F64.

use sandgate_driver::alerts::Alert;
use sandgate_driver::{Error, Registers};

/// Register, bit and alert.
const WARNINGS: [(u16, u16, &str); 4] = [
    (553, 1, "fan_warning"),
    (553, 2, "grid_phase_warning"),
    (554, 14, "lithium_battery_loss_warning"),
    (554, 15, "parallel_communication_quality_warning"),
];

/// Number on the inverter's display and alert.
const FAULTS: [(u16, &str); 32] = [
    (1, "dc_inversed_failure"),
    (7, "dc_start_failure"),
    (10, "aux_power_board_failure"),
    (13, "working_mode_change"),
    (15, "ac_over_current_sw_failure"),
    (16, "dc_ground_leakage_current_fault"),
    (18, "ac_over_current_tz"),
    (20, "dc_over_current"),
    (21, "dc_hv_bus_over_current"),
    (22, "remote_emergency_stop"),
    (23, "ac_leakage_current_is_transient_over_current"),
    (24, "dc_insulation_impedance"),
    (26, "dc_busbar_imbalanced"),
    (29, "parallel_comms_cable"),
    (34, "ac_overload_backup"),
    (35, "no_ac_grid"),
    (41, "parallel_system_stopped"),
    (42, "ac_line_low_voltage"),
    (46, "battery_1_fault"),
    (47, "ac_grid_freq_too_high"),
    (48, "ac_grid_freq_too_low"),
    (49, "battery_2_fault"),
    (52, "dc_voltage_too_high"),
    (53, "dc_voltage_too_low"),
    (54, "battery_1_voltage_high"),
    (55, "battery_2_voltage_high"),
    (56, "battery_1_voltage_low"),
    (57, "battery_2_voltage_low"),
    (58, "bms_communication_lost"),
    (62, "drm_stop_activated"),
    (63, "arc_fault"),
    (64, "heat_sink_temp_failure"),
];

/// The alerts of all set bits. Bits without a name of their own are gathered
/// in `other_warning` and `other_fault`, so that none is lost.
pub fn active(registers: &Registers) -> Result<Vec<Alert>, Error> {
    let mut alerts = Vec::new();
    let mut others = Vec::new();
    for register in [553, 554] {
        for bit in set_bits(registers.u16(register)?) {
            match WARNINGS.iter().find(|(place, number, _)| (*place, *number) == (register, bit)) {
                Some((_, _, id)) => alerts.push(alert(id, None)),
                None => others.push(format!("register {register} bit {bit}")),
            }
        }
    }
    gather(&mut alerts, "other_warning", &mut others);
    for register in 555..=558 {
        for bit in set_bits(registers.u16(register)?) {
            let number = (register - 555) * 16 + bit + 1;
            match FAULTS.iter().find(|(fault, _)| *fault == number) {
                Some((_, id)) => alerts.push(alert(id, None)),
                None => others.push(format!("F{number:02}")),
            }
        }
    }
    gather(&mut alerts, "other_fault", &mut others);
    Ok(alerts)
}

fn set_bits(word: u16) -> impl Iterator<Item = u16> {
    (0..16).filter(move |bit| word >> bit & 1 == 1)
}

fn alert(id: &str, details: Option<String>) -> Alert {
    Alert { id: id.to_owned(), details }
}

/// Moves what is left over into one alert.
fn gather(alerts: &mut Vec<Alert>, id: &str, others: &mut Vec<String>) {
    if !others.is_empty() {
        alerts.push(alert(id, Some(others.join(", "))));
        others.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(words: [u16; 6]) -> Result<Vec<String>, Error> {
        let alerts = active(&Registers::new(553, words.to_vec()))?;
        Ok(alerts.into_iter().map(|alert| alert.id).collect())
    }

    #[test]
    fn each_bit_raises_its_alert() -> Result<(), Error> {
        for (words, expected) in [
            ([0, 0, 0, 0, 0, 0], vec![]),
            ([1 << 1 | 1 << 2, 0, 0, 0, 0, 0], vec!["fan_warning", "grid_phase_warning"]),
            ([0, 1 << 14, 0, 0, 0, 0], vec!["lithium_battery_loss_warning"]),
            ([0, 0, 1, 0, 0, 0], vec!["dc_inversed_failure"]),
            ([0, 0, 0, 1 << 4, 0, 0], vec!["dc_hv_bus_over_current"]),
            ([0, 0, 0, 0, 1 << 2, 1 << 15], vec!["no_ac_grid", "heat_sink_temp_failure"]),
        ] {
            assert_eq!(ids(words)?, expected);
        }
        Ok(())
    }

    #[test]
    fn bits_without_a_name_are_told_by_their_number() -> Result<(), Error> {
        let alerts = active(&Registers::new(553, vec![1, 0, 1 << 4, 0, 1 << 3, 0]))?;
        let warning = alert("other_warning", Some("register 553 bit 0".into()));
        let fault = alert("other_fault", Some("F05, F36".into()));
        assert_eq!(alerts, [warning, fault]);
        Ok(())
    }

    #[test]
    fn every_alert_is_declared_in_the_manifest_with_its_number() {
        let manifest = include_str!("../manifest.yml");
        for (number, id) in FAULTS {
            let declared = format!("\n  {id}:\n    severity: error\n    code: F{number:02}\n");
            assert!(manifest.contains(&declared), "{id}");
        }
        let warnings = WARNINGS.iter().map(|(_, _, id)| *id);
        for id in warnings.chain(["other_warning", "other_fault", "communication_failed"]) {
            assert!(manifest.contains(&format!("\n  {id}:\n    severity: ")), "{id}");
        }
    }
}
