//! `/standin/v1`: what is known of devices, and what happened.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::super::channel::{Alerts, Channel};
use super::super::event::Event;
use super::super::platform::Platform;
use super::super::topic::Address;
use super::follow::{Batch, Range, lines};
use super::{Answer, App, Asked};

/// `GET /standin/v1/devices`
pub(super) async fn list(State(app): State<App>) -> Response {
    let platform = app.shared.platform();
    let devices: Vec<_> = platform.channels().map(|(address, channel)| report(&platform, address, channel)).collect();
    drop(platform);
    Json(json!({ "devices": devices })).into_response()
}

fn report(platform: &Platform, address: &Address, channel: &Channel) -> Value {
    let last = channel.samples.from(0).next_back();
    let alerts = match &channel.alerts {
        Alerts::Active(active) => json!(active),
        Alerts::Unknown | Alerts::Untold => Value::Null,
    };
    json!({
        "id": address, "hardware_id": address.hardware, "channel_id": address.channel,
        "parent": channel.parent, "type": channel.kind, "state": channel.state(), "seen": channel.seen,
        "blueprint": platform.blueprint(address).map(|manifest| &manifest.blueprint.display_name),
        "properties": channel.properties, "alerts": alerts,
        "telemetry": last.map_or_else(|| Value::Object(Map::new()), super::super::channel::Sample::json),
        "samples": channel.samples.end(), "log_lines": channel.logs.end(), "dropped": channel.dropped,
    })
}

/// `GET /standin/v1/devices/DEVICE/samples`
pub(super) async fn samples(State(app): State<App>, Path(name): Path<String>, range: Asked<Range>) -> Answer {
    let Query(range) = range?;
    let (address, (from, until)) = {
        let platform = app.shared.platform();
        let address = platform.find(&name)?;
        let begin = platform.channel(&address).map_or((0, None), |channel| range.of(&channel.samples));
        (address, begin)
    };
    Ok(lines(app.shared, from, move |platform, from| match platform.channel(&address) {
        Some(channel) => Batch::of(&channel.samples, from, until, |sample| sample.json().to_string()),
        None => Batch::end(),
    }))
}

/// `GET /standin/v1/devices/DEVICE/logs`
pub(super) async fn logs(State(app): State<App>, Path(name): Path<String>, range: Asked<Range>) -> Answer {
    let Query(range) = range?;
    let (address, (from, until)) = {
        let platform = app.shared.platform();
        let address = platform.find(&name)?;
        let begin = platform.channel(&address).map_or((0, None), |channel| range.of(&channel.logs));
        (address, begin)
    };
    Ok(lines(app.shared, from, move |platform, from| match platform.channel(&address) {
        // Texts and numbers always serialize.
        Some(channel) => Batch::of(&channel.logs, from, until, |l| serde_json::to_string(l).unwrap_or_default()),
        None => Batch::end(),
    }))
}

/// `GET /standin/v1/log`
pub(super) async fn events(State(app): State<App>, range: Asked<Range>) -> Answer {
    let Query(range) = range?;
    let (from, until) = range.of(app.shared.platform().events().ring());
    Ok(lines(app.shared, from, move |platform, from| {
        let json = |event: &Event| serde_json::to_string(event).unwrap_or_default();
        Batch::of(platform.events().ring(), from, until, json)
    }))
}
