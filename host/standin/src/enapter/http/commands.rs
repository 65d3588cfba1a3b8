//! Commands over HTTP.
//!
//! | method and path | does |
//! |---|---|
//! | `POST /v3/devices/DEVICE/execute_command?expand=log` `{"name": NAME, "arguments": {}}` | sends a command, waits for its end: `{"execution": {…}}` |
//! | `POST /v3/devices/DEVICE/command_executions`, the same body | sends a command: `{"execution_id": ID}` |
//! | `GET /v3/devices/DEVICE/command_executions?order=CREATED_AT_DESC&state.in=…&name.in=…&offset=N` | the commands of a device: `{"executions": […]}`, 50 at once |
//! | `GET /v3/devices/DEVICE/command_executions/ID?expand=log` | one command: `{"execution": {…}}` |
//!
//! Beyond the platform's API, `timeout=SECONDS` sets how long a command may
//! take. The list also takes `created_at.gte` and `created_at.lt`, in RFC 3339.
//! Executions and responses have the platform's states and fields.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rumqttc::QoS;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::time::Time;

use super::super::execution::{Answer as Said, Execution, Order};
use super::follow::{Batch, lines};
use super::{Answer, App, Asked, Body, Failure};

/// Commands in one page of the list.
const PAGE: usize = 50;
/// The longest time for a command, in seconds.
const LONGEST: f64 = 86_400.0;
/// The longest name of a command.
const MAX_NAME: usize = 128;

#[derive(Deserialize)]
pub(super) struct Command {
    name: String,
    arguments: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
pub(super) struct Options {
    expand: Option<String>,
    timeout: Option<f64>,
}

impl Options {
    fn with_log(&self) -> bool {
        self.expand.as_deref().is_some_and(|expand| expand.split(',').any(|word| word == "log"))
    }
}

/// `POST /v3/devices/DEVICE/execute_command`
pub(super) async fn execute(
    State(app): State<App>,
    Path(name): Path<String>,
    options: Asked<Options>,
    command: Body<Command>,
) -> Answer {
    let (Query(options), Json(command)) = (options?, command?);
    let id = send(&app, &name, &options, command)?;
    let mut changed = app.shared.changed.subscribe();
    loop {
        changed.mark_unchanged();
        let over = {
            let platform = app.shared.platform();
            let execution = platform.executions().find(&id).ok_or_else(forgotten)?;
            execution.is_over().then(|| execution.json(options.with_log()))
        };
        if let Some(execution) = over {
            return Ok(Json(json!({ "execution": execution })).into_response());
        }
        if app.shared.closed.load(Ordering::Relaxed) {
            return Err(Failure {
                status: StatusCode::SERVICE_UNAVAILABLE,
                code: "closing",
                message: "the stand-in is stopping".into(),
            });
        }
        // The sender lives as long as what is shared.
        let _ = changed.changed().await;
    }
}

/// `POST /v3/devices/DEVICE/command_executions`
pub(super) async fn create(
    State(app): State<App>,
    Path(name): Path<String>,
    options: Asked<Options>,
    command: Body<Command>,
) -> Answer {
    let (Query(options), Json(command)) = (options?, command?);
    let id = send(&app, &name, &options, command)?;
    Ok(Json(json!({ "execution_id": id })).into_response())
}

/// Opens a command and publishes it; returns its id.
fn send(app: &App, device: &str, options: &Options, command: Command) -> Result<String, Failure> {
    let timeout = match options.timeout {
        None => app.shared.command_timeout,
        Some(seconds) if seconds > 0.0 && seconds <= LONGEST => Duration::from_secs_f64(seconds),
        Some(other) => {
            return Err(Failure::invalid(format!("timeout: expected seconds above 0, up to {LONGEST}, found {other}")));
        }
    };
    if command.name.is_empty() || command.name.len() > MAX_NAME {
        return Err(Failure::invalid(format!("name: expected 1 to {MAX_NAME} bytes, found {}", command.name.len())));
    }
    let id = new_id();
    let request = app.shared.change(|platform, now| {
        let device = platform.find(device)?;
        let arguments = command.arguments.unwrap_or_default();
        platform.execute(&id, Order { device, name: command.name, arguments, timeout }, now)
    })?;
    let receivers = app.broker.publish(&request.topic, &request.payload, QoS::AtLeastOnce);
    app.shared.change(|platform, now| platform.delivered(&id, receivers, now));
    Ok(id)
}

#[derive(Deserialize)]
pub(super) struct Filter {
    order: Option<String>,
    #[serde(rename = "state.in")]
    states: Option<String>,
    #[serde(rename = "name.in")]
    names: Option<String>,
    #[serde(rename = "created_at.gte")]
    from: Option<String>,
    #[serde(rename = "created_at.lt")]
    before: Option<String>,
    #[serde(default)]
    offset: usize,
}

/// A time of a filter in milliseconds.
fn moment(name: &str, text: &Option<String>) -> Result<Option<Time>, Failure> {
    let Some(text) = text else { return Ok(None) };
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => Ok(Some(Time::try_from(time.as_millisecond()).unwrap_or_default())),
        Err(_) => {
            Err(Failure::invalid(format!("{name}: expected a time such as 2026-01-31T12:00:00Z, found {text:?}")))
        }
    }
}

/// `GET /v3/devices/DEVICE/command_executions`
pub(super) async fn list(State(app): State<App>, Path(name): Path<String>, filter: Asked<Filter>) -> Answer {
    let Query(filter) = filter?;
    let newest_first = match filter.order.as_deref() {
        None | Some("CREATED_AT_ASC") => false,
        Some("CREATED_AT_DESC") => true,
        Some(other) => {
            let problem = format!("order: expected CREATED_AT_ASC or CREATED_AT_DESC, found {other:?}");
            return Err(Failure::invalid(problem));
        }
    };
    let among = |list: &Option<String>, word: &str| {
        list.as_ref().is_none_or(|list| list.split(',').any(|wanted| wanted == word))
    };
    let (from, before) = (moment("created_at.gte", &filter.from)?, moment("created_at.lt", &filter.before)?);
    let wanted = |execution: &&Execution| {
        from.is_none_or(|from| execution.created >= from)
            && before.is_none_or(|before| execution.created < before)
            && among(&filter.states, execution.state.name())
            && among(&filter.names, &execution.order.name)
    };
    let platform = app.shared.platform();
    let device = platform.find(&name)?;
    let all = platform.executions().of(&device).filter(wanted);
    let json = |execution: &Execution| execution.json(false);
    let page: Vec<_> = match newest_first {
        true => all.rev().skip(filter.offset).take(PAGE).map(json).collect(),
        false => all.skip(filter.offset).take(PAGE).map(json).collect(),
    };
    Ok(Json(json!({ "executions": page })).into_response())
}

/// `GET /v3/devices/DEVICE/command_executions/ID`
pub(super) async fn show(
    State(app): State<App>,
    Path((name, id)): Path<(String, String)>,
    options: Asked<Options>,
) -> Answer {
    let Query(options) = options?;
    let platform = app.shared.platform();
    let device = platform.find(&name)?;
    let execution = platform.executions().find(&id).filter(|execution| execution.order.device == device);
    let execution = execution.ok_or_else(forgotten)?.json(options.with_log());
    Ok(Json(json!({ "execution": execution })).into_response())
}

/// `GET /standin/v1/executions/ID`
pub(super) async fn follow(State(app): State<App>, Path(id): Path<String>) -> Result<Response, Failure> {
    app.shared.platform().executions().find(&id).ok_or_else(forgotten)?;
    Ok(lines(app.shared, 0, move |platform, from| {
        let Some(execution) = platform.executions().find(&id) else { return Batch::end() };
        let batch = Batch::of(&execution.log, from, None, |answer: &Said| answer.json().to_string());
        match execution.is_over() && batch.has_all(&execution.log) {
            true => batch.end_with(&execution.json(false).to_string()),
            false => batch,
        }
    }))
}

fn forgotten() -> Failure {
    Failure::not_found("no such command execution; only the newest ones are kept")
}

/// A random id in the form of a UUID, version 4.
fn new_id() -> String {
    let (a, b) = (fastrand::u64(..), fastrand::u64(..));
    let (c, d) = ((a & 0x0fff) | 0x4000, ((b >> 48) & 0x3fff) | 0x8000);
    format!("{:08x}-{:04x}-{c:04x}-{d:04x}-{:012x}", a >> 32, (a >> 16) & 0xffff, b & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_look_like_uuids_and_differ() {
        let (one, two) = (new_id(), new_id());
        assert_ne!(one, two);
        let lengths: Vec<_> = one.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert!(one.chars().nth(14) == Some('4') && "89ab".contains(one.chars().nth(19).unwrap()), "{one}");
    }
}
