//! A scenario made of a tape: the device answers from the tape, the commands and
//! configurations that came are its steps, and what the driver has told at the
//! end is expected.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use crate::gate::Deeds;
use crate::manifest::value::json_of;
use crate::message::{Attribute, CommandError, Value, json_object};
use crate::sandbox::boundary::Export;
use crate::sandbox::contract::exports::sandgate::driver::device_driver::{Command, CommandError as DriverError};
use crate::tape::{Call, Ended, Tape};

/// The text of a scenario file beside which the tape lies, under this name.
pub fn scenario_of(tape: &Tape, name: &str) -> String {
    let (_, first, last) = tape.extent();
    // What the last call does belongs to it.
    let end = tape.calls().last().and_then(|call| call.asked.last().map(|asked| asked.at + asked.took));
    let last = last.max(end.unwrap_or_default());
    let header = &tape.header;
    let begin = std::time::UNIX_EPOCH + Duration::from_millis(header.began) + first;
    let mut text = String::new();
    let title = format!("what {} did", header.device);
    // Each part is JSON, which YAML holds.
    let _ = writeln!(
        text,
        "# From a tape of {} {}. What it has no answer to is refused.",
        header.driver.name, header.driver.version
    );
    if tape.calls().iter().any(|call| call.number == Export::Restore as u8) || !header.is_whole {
        let _ = writeln!(
            text,
            "# It has more behind it than the tape: what it says of that is other here, and to be changed."
        );
    }
    let _ = writeln!(text, "given:");
    let _ = writeln!(text, "  time: {}", humantime::format_rfc3339_seconds(begin));
    let _ = writeln!(text, "  configuration: {}", header.configuration);
    let _ = writeln!(text, "  tape: {}", Json::from(name));
    let _ = writeln!(text, "scenarios:");
    let _ = writeln!(text, "  {}:", Json::from(title));
    let mut time = first;
    let mut configuration = header.configuration.as_object().cloned().unwrap_or_default();
    for call in tape.calls() {
        let Some(step) = step_of(&call, &mut configuration) else { continue };
        advance(&mut text, &mut time, call.at);
        let _ = writeln!(text, "    - {step}");
    }
    advance(&mut text, &mut time, last + Duration::from_millis(100));
    let _ = writeln!(text, "    - {}", json!({ "expect": expected(&Deeds::of(tape)) }));
    text
}

/// Lets time pass up to a call.
fn advance(text: &mut String, time: &mut Duration, to: Duration) {
    let ms = to.saturating_sub(*time).as_millis();
    if ms > 0 {
        let _ = writeln!(text, "    - advance: {ms}ms");
        *time = to;
    }
}

/// What came from outside, as a step.
fn step_of(call: &Call<'_>, configuration: &mut Map<String, Json>) -> Option<Json> {
    if call.number == Export::HandleCommand as u8 {
        type Answer = Result<Result<Vec<Attribute>, DriverError>, Ended>;
        let command: Command = postcard::from_bytes(call.arguments).ok()?;
        let known = command.arguments.into_iter().filter(|argument| argument.value != Value::Unknown);
        let arguments = json_object(&known.collect::<Vec<_>>());
        let mut step = Map::new();
        step.insert("name".into(), command.name.into());
        step.insert("arguments".into(), arguments.into());
        match postcard::from_bytes::<Answer>(call.result?).ok()? {
            Ok(Ok(result)) if !result.is_empty() => {
                let result = result.iter().map(|attribute| (attribute.name.clone(), matcher(&attribute.value)));
                step.insert("result".into(), Json::Object(result.collect()));
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                let error = CommandError::from(error);
                step.insert("error".into(), error.to_string().into());
            }
            Err(_) => drop(step.insert("error".into(), "*".into())),
        }
        return Some(json!({ "command": step }));
    }
    if call.number == Export::Configure as u8 {
        let text: String = postcard::from_bytes(call.arguments).ok()?;
        let taken: Result<Result<(), String>, Ended> = postcard::from_bytes(call.result?).ok()?;
        let new: Map<String, Json> = serde_json::from_str(&text).ok()?;
        let mut step = Map::from_iter([("configuration".to_owned(), Json::from(new.clone()))]);
        match taken {
            Ok(Ok(())) => *configuration = new,
            Ok(Err(_)) | Err(_) => drop(step.insert("rejected".into(), "*".into())),
        }
        return Some(json!({ "configure": step }));
    }
    None
}

/// What was told last.
fn expected(deeds: &Deeds) -> Json {
    let mut telemetry = Map::new();
    for (_, values) in &deeds.samples {
        telemetry.extend(values.iter().map(|(name, value)| (name.clone(), matcher(value))));
    }
    let properties: Map<String, Json> =
        deeds.properties.iter().map(|(name, value)| (name.clone(), matcher(value))).collect();
    let mut expected = Map::new();
    if !telemetry.is_empty() {
        expected.insert("telemetry".into(), telemetry.into());
    }
    if !properties.is_empty() {
        expected.insert("properties".into(), properties.into());
    }
    match deeds.alerts.last() {
        Some(Some(ids)) => drop(expected.insert("alerts".into(), json!(ids))),
        Some(None) => drop(expected.insert("alerts".into(), "unknown".into())),
        None => {}
    }
    expected.into()
}

/// A value as an expectation says it.
fn matcher(value: &Value) -> Json {
    match value {
        Value::Json(_) => json!({ "json": json_of(value) }),
        // Chance and clocks of the machine are others when it is played.
        other => json_of(other),
    }
}
