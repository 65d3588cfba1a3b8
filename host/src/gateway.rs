//! The gateway as a device: the parent of all others in the cloud.
//!
//! Pure: makes its telemetry and properties from a status. Which commands it
//! takes stands in `manifest/gateway.yml`; the supervisor carries them out.

use crate::device::Phase;
use crate::manifest::Manifest;
use crate::message::{Alerts, Attribute, Value};
use crate::status::Status;

/// The gateway's own manifest, for checking commands.
pub fn manifest() -> Result<Manifest, String> {
    let driver = concat!("\ndriver:\n  name: sandgate\n  version: ", env!("CARGO_PKG_VERSION"), "\n");
    Manifest::parse(&format!("{}{driver}", crate::manifest::GATEWAY_BLUEPRINT))
}

/// What the gateway says about itself once and after each connect.
pub fn properties() -> Vec<Attribute> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    vec![text("version", env!("CARGO_PKG_VERSION")), text("host", &host)]
}

/// Whether nothing is wrong with a device. What has not been tried yet is not wrong.
pub fn is_well_in(phase: &Phase) -> bool {
    !matches!(phase, Phase::Failed | Phase::Restarting)
}

/// What the gateway measures.
pub fn telemetry(status: &Status) -> (Vec<Attribute>, Alerts) {
    let count = |phase: &Phase| status.devices.iter().filter(|device| device.phase == *phase).count();
    let failed: Vec<&str> =
        status.devices.iter().filter(|device| device.phase == Phase::Failed).map(|device| device.id.as_str()).collect();
    let running = count(&Phase::Running);
    let is_well = status.devices.iter().all(|device| is_well_in(&device.phase));
    let sum = |value: fn(&crate::status::SessionReport) -> u64| status.sessions.values().map(value).sum::<u64>();
    let outboxes = || status.sessions.values().map(|session| &session.outbox);
    let mut attributes = vec![
        text("status", if is_well { "ok" } else { "degraded" }),
        number("uptime", status.uptime_s),
        number("devices_running", running as u64),
        number("devices_failed", failed.len() as u64),
        number("messages", sum(|session| session.delivered)),
        number("messages_waiting", sum(|session| session.waiting as u64)),
        number("messages_dropped", sum(|session| session.dropped)),
        number("memory", status.memory),
        number("outbox_bytes", sum(|session| session.waiting_bytes as u64)),
        number("outbox_age", outboxes().filter_map(|outbox| outbox.oldest_s).max().unwrap_or_default()),
    ];
    // Not before there is a rate to tell it by.
    let left = outboxes().filter_map(|outbox| outbox.hours_left).min_by(f64::total_cmp);
    attributes.extend(left.map(|hours| Attribute { name: "outbox_hours_left".into(), value: Value::Float(hours) }));
    let mut alerts = Vec::new();
    if !failed.is_empty() {
        alerts.push(("device_failed".to_owned(), Some(failed.join(", "))));
    }
    let problems: Vec<&str> = outboxes().filter_map(|outbox| outbox.disk.problem.as_deref()).collect();
    if !problems.is_empty() {
        alerts.push(("outbox_in_memory".to_owned(), Some(problems.join(", "))));
    }
    (attributes, Alerts::Active(alerts))
}

/// The result of `list_devices`.
pub fn list(status: &Status) -> Vec<Attribute> {
    let devices: Vec<_> = status
        .devices
        .iter()
        .map(|device| {
            serde_json::json!({"id": device.id, "phase": device.phase, "driver": device.driver,
                "version": device.version, "digest": device.digest, "problem": device.problem})
        })
        .collect();
    vec![Attribute { name: "devices".into(), value: Value::Json(serde_json::Value::from(devices).to_string()) }]
}

fn text(name: &str, value: &str) -> Attribute {
    Attribute { name: name.to_owned(), value: Value::Text(value.to_owned()) }
}

fn number(name: &str, value: u64) -> Attribute {
    Attribute { name: name.to_owned(), value: Value::Integer(i64::try_from(value).unwrap_or(i64::MAX)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_blueprint_declares_what_is_sent() {
        let manifest = manifest().unwrap();
        let status =
            Status { version: String::new(), uptime_s: 1, memory: 2, sessions: Default::default(), devices: vec![] };
        let (attributes, _) = telemetry(&status);
        for attribute in &attributes {
            let field = manifest.blueprint.telemetry.get(&attribute.name).unwrap();
            field.check(&attribute.value, |_| false).unwrap();
        }
        // All but the hours that are left, which take a minute to be known.
        assert_eq!(attributes.len() + 1, manifest.blueprint.telemetry.len());
        for attribute in properties() {
            manifest.blueprint.properties.get(&attribute.name).unwrap();
        }
    }
}
