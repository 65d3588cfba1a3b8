//! Telemetry over HTTP.
//!
//! | method and path | does |
//! |---|---|
//! | `GET /v3/telemetry/latest?devices[DEVICE]=a,b&relevance_interval=60s` | the latest values: `{"telemetry": {DEVICE: {a: {"timestamp": S, "value": V}}}}` |
//! | `POST /v3/telemetry/query_timeseries` `{"from", "to", "granularity": "60s", "telemetry": [{"device", "attribute": […], "aggregation"}]}` | CSV, `ts` and a column for each attribute |
//!
//! Gaps are never filled, and rows without any value are left out.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::platform::Platform;
use super::timeseries::{Aggregation, Column, Table};
use super::{Answer, App, Asked, Body, Failure};
use crate::time::now;
use sandgate_manifest::Type;

/// Maximum attributes, and devices, that are given at once: the platform
/// waits meanwhile.
const ATTRIBUTES: usize = 200;
const DEVICES: usize = 50;

/// `GET /v3/telemetry/latest`
pub(super) async fn latest(State(app): State<App>, query: Asked<HashMap<String, String>>) -> Answer {
    let Query(query) = query?;
    let relevant = match query.get("relevance_interval") {
        Some(text) => now() / 1000 - duration("relevance_interval", text)?.as_secs().min(now() / 1000),
        None => 0,
    };
    let device = |key: &str| Some(key.strip_prefix("devices[")?.strip_suffix(']')?.to_owned());
    let wanted: Vec<_> = query.iter().filter_map(|(key, names)| Some((device(key)?, names))).collect();
    limit(wanted.len(), wanted.iter().map(|(_, names)| names.split(',').count()).sum())?;
    let platform = app.shared.platform();
    let mut telemetry = Map::new();
    for (name, names) in &wanted {
        let channel = platform.find(name).map(|address| platform.channel(&address))?;
        let mut newest: HashMap<&str, (u64, Value)> = HashMap::new();
        for sample in channel.into_iter().flat_map(|channel| channel.samples.from(0)) {
            let mut attributes = sample.attributes();
            for name in names.split(',').filter(|_| sample.timestamp >= relevant) {
                if let Some(value) = attributes.remove(name)
                    && newest.get(name).is_none_or(|(before, _)| *before <= sample.timestamp)
                {
                    newest.insert(name, (sample.timestamp, value));
                }
            }
        }
        let point = |name: &str| match newest.get(name) {
            Some((timestamp, value)) => json!({"timestamp": timestamp, "value": value}),
            None => json!({"timestamp": null, "value": null}),
        };
        let points: Map<_, _> = names.split(',').map(|name| (name.to_owned(), point(name))).collect();
        telemetry.insert(name.to_owned(), Value::Object(points));
    }
    Ok(Json(json!({ "telemetry": telemetry })).into_response())
}

fn limit(devices: usize, attributes: usize) -> Result<(), Failure> {
    if devices > DEVICES || attributes > ATTRIBUTES {
        let expected = format!("expected at most {ATTRIBUTES} attributes of {DEVICES} devices");
        return Err(Failure::invalid(format!("{expected}, found {attributes} of {devices}")));
    }
    Ok(())
}

#[derive(Deserialize)]
pub(super) struct Request {
    from: String,
    to: String,
    granularity: String,
    telemetry: Vec<Selector>,
}

#[derive(Deserialize)]
struct Selector {
    device: String,
    attribute: Vec<String>,
    #[serde(default)]
    aggregation: Aggregation,
}

/// `POST /v3/telemetry/query_timeseries`
pub(super) async fn query(State(app): State<App>, request: Body<Request>) -> Answer {
    let Json(request) = request?;
    let (from, to) = (seconds("from", &request.from)?, seconds("to", &request.to)?);
    let step = duration("granularity", &request.granularity)?.as_secs();
    if to <= from || step == 0 {
        return Err(Failure::invalid("expected a time `to` after `from` and a granularity of at least 1s"));
    }
    limit(request.telemetry.len(), request.telemetry.iter().map(|selector| selector.attribute.len()).sum())?;
    let table = {
        let platform = app.shared.platform();
        let mut table = Table::new(from, to, step);
        for selector in &request.telemetry {
            add(&mut table, &platform, selector)?;
        }
        table
    };
    let headers =
        [(header::CONTENT_TYPE.as_str(), "text/csv".to_owned()), ("x-enapter-timeseries-data-types", table.types())];
    Ok((headers, table.csv()).into_response())
}

fn add(table: &mut Table, platform: &Platform, selector: &Selector) -> Result<(), Failure> {
    let address = platform.find(&selector.device)?;
    let fields = platform.blueprint(&address).map(|manifest| &manifest.blueprint.telemetry);
    let first = table.columns();
    for name in &selector.attribute {
        let kind: Option<Type> = fields.and_then(|fields| fields.get(name)).map(|field| field.kind);
        let label = format!("device={} telemetry={name}", selector.device);
        table.add(Column::new(label, kind, selector.aggregation));
    }
    for sample in platform.channel(&address).into_iter().flat_map(|channel| channel.samples.from(0)) {
        if !table.covers(sample.timestamp) {
            continue;
        }
        let mut attributes = sample.attributes();
        for (column, name) in (first..).zip(&selector.attribute) {
            if let Some(value) = attributes.remove(name) {
                table.put(column, sample.timestamp, value);
            }
        }
    }
    Ok(())
}

fn duration(name: &str, text: &str) -> Result<Duration, Failure> {
    humantime::parse_duration(text)
        .map_err(|_| Failure::invalid(format!("{name}: expected a time such as \"60s\", found {text:?}")))
}

/// Reads `2026-01-31T12:00:00Z`, also with `+00:00` at its end.
fn seconds(name: &str, text: &str) -> Result<u64, Failure> {
    let utc = text.strip_suffix("+00:00").map_or_else(|| text.to_owned(), |rest| format!("{rest}Z"));
    let time: Option<SystemTime> = humantime::parse_rfc3339_weak(&utc).ok();
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs()).ok_or_else(|| {
        Failure::invalid(format!("{name}: expected a UTC time such as \"2026-01-31T12:00:00Z\", found {text:?}"))
    })
}
