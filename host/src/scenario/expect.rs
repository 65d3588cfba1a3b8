//! What a scenario expects, and whether it is so.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::story::{MOST, Window};
use crate::device::Phase;
use crate::manifest::Manifest;
use crate::manifest::value::json_of;
use crate::message::{Alerts, Value};
use crate::text;
use crate::units::{Size, Span};

/// All of it must hold, of what has happened since the expectations before.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Expect {
    /// The last values.
    pub telemetry: BTreeMap<String, Matcher>,
    pub properties: BTreeMap<String, Matcher>,
    /// How many samples.
    pub samples: Option<Matcher>,
    /// Those that are active now.
    pub alerts: Option<ActiveAlerts>,
    /// Lines that were written, each with its level.
    pub log: Vec<LogLine>,
    pub no_log: Vec<Pattern>,
    /// All writes to Modbus units, in their order, such as `line/1 holding 108 = 100`.
    pub writes: Option<Vec<String>>,
    /// Requests to devices in this order, others between them or not.
    pub requests: Vec<Pattern>,
    pub no_requests: Vec<Pattern>,
    /// Texts that are stored.
    pub storage: BTreeMap<String, Matcher>,
    pub phase: Option<Phase>,
    /// The version of the driver that runs.
    pub version: Option<String>,
    /// What it has used at most since the scenario began.
    pub budgets: Budgets,
}

/// See `Expect::budgets`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Budgets {
    /// Of an instance.
    pub memory: Option<Size>,
    /// Of a call, by the real clock of the processor.
    pub cpu: Option<Span>,
}

/// What a value has to be.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Json")]
pub(super) enum Matcher {
    /// This; of numbers the same to a millionth.
    Equal(Json),
    /// At most so far away.
    Near {
        near: f64,
        within: f64,
    },
    Between(f64, f64),
    Like(Pattern),
    /// There is one.
    Any,
    /// There is none.
    Absent,
}

impl TryFrom<Json> for Matcher {
    type Error = String;

    fn try_from(value: Json) -> Result<Matcher, String> {
        let Json::Object(object) = &value else { return Ok(Matcher::Equal(value)) };
        let keys: Vec<&str> = object.keys().map(String::as_str).collect();
        let number = |key: &str| object.get(key).and_then(Json::as_f64);
        let matcher = match keys.as_slice() {
            ["near", "within"] | ["within", "near"] => {
                number("near").zip(number("within")).map(|(near, within)| Matcher::Near { near, within })
            }
            ["between"] => match object.get("between").and_then(Json::as_array).map(Vec::as_slice) {
                Some([low, high]) => low.as_f64().zip(high.as_f64()).map(|(low, high)| Matcher::Between(low, high)),
                _ => None,
            },
            ["like"] => object.get("like").and_then(Json::as_str).map(|text| Matcher::Like(Pattern(text.into()))),
            ["any"] if object.get("any") == Some(&Json::Bool(true)) => Some(Matcher::Any),
            ["absent"] if object.get("absent") == Some(&Json::Bool(true)) => Some(Matcher::Absent),
            ["json"] => object.get("json").cloned().map(Matcher::Equal),
            _ => None,
        };
        matcher.ok_or_else(|| {
            format!(
                "expected a value, or one of {{near: 1.5, within: 0.1}}, {{between: [1, 2]}}, {{like: \"a*\"}}, \
                 {{any: true}}, {{absent: true}}, {{json: …}}, found {value}"
            )
        })
    }
}

impl Matcher {
    fn matches(&self, found: Option<&Json>) -> bool {
        let within =
            |low: f64, high: f64| found.and_then(Json::as_f64).is_some_and(|found| (low..=high).contains(&found));
        match self {
            Matcher::Equal(expected) => found.is_some_and(|found| is_equal(expected, found)),
            Matcher::Near { near, within: by } => within(near - by, near + by),
            Matcher::Between(low, high) => within(*low, *high),
            Matcher::Like(pattern) => found.is_some_and(|found| match found {
                Json::String(text) => pattern.matches(text),
                other => pattern.matches(&other.to_string()),
            }),
            Matcher::Any => found.is_some(),
            Matcher::Absent => found.is_none(),
        }
    }

    fn describe(&self) -> String {
        match self {
            Matcher::Equal(expected) => expected.to_string(),
            Matcher::Near { near, within } => format!("{near} ± {within}"),
            Matcher::Between(low, high) => format!("{low} to {high}"),
            Matcher::Like(pattern) => format!("like {:?}", pattern.0),
            Matcher::Any => "any value".into(),
            Matcher::Absent => "none".into(),
        }
    }

    /// Holds a value against it; gives what is wrong.
    fn check(&self, name: &str, found: Option<&Json>, absence: impl FnOnce() -> String) -> Option<String> {
        if self.matches(found) {
            return None;
        }
        let found = found.map_or_else(absence, ToString::to_string);
        Some(format!("{name}: expected {}, found {found}", self.describe()))
    }
}

/// Numbers come as a device has them, with 32 bits for example.
fn is_equal(expected: &Json, found: &Json) -> bool {
    match (expected, found) {
        (Json::Number(_), Json::Number(_)) => {
            let (Some(expected), Some(found)) = (expected.as_f64(), found.as_f64()) else { return expected == found };
            (expected - found).abs() <= 1e-6 * expected.abs().max(found.abs())
        }
        (Json::Array(expected), Json::Array(found)) => {
            expected.len() == found.len() && expected.iter().zip(found).all(|(one, other)| is_equal(one, other))
        }
        (Json::Object(expected), Json::Object(found)) => {
            expected.len() == found.len()
                && expected.iter().all(|(name, one)| found.get(name).is_some_and(|other| is_equal(one, other)))
        }
        _ => expected == found,
    }
}

/// A text in which `*` stands for anything.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Pattern(pub String);

impl Pattern {
    pub(super) fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            match rest.split_once(part) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// A line of a log.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Json")]
pub(super) struct LogLine {
    /// `level: text`, or the text alone.
    pattern: Pattern,
    /// How often it stands there; none: at least once.
    times: Option<usize>,
}

impl TryFrom<Json> for LogLine {
    type Error = String;

    fn try_from(value: Json) -> Result<LogLine, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Times {
            like: String,
            times: usize,
        }
        match value {
            Json::String(text) => Ok(LogLine { pattern: Pattern(text), times: None }),
            other => match serde_json::from_value::<Times>(other.clone()) {
                Ok(Times { like, times }) => Ok(LogLine { pattern: Pattern(like), times: Some(times) }),
                Err(_) => Err(format!("expected a text or {{like: \"a*\", times: 1}}, found {other}")),
            },
        }
    }
}

/// Which alerts are active.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Json")]
pub(super) enum ActiveAlerts {
    /// Nothing can be said.
    Unknown,
    /// These, in any order.
    These(Vec<String>),
}

impl TryFrom<Json> for ActiveAlerts {
    type Error = String;

    fn try_from(value: Json) -> Result<ActiveAlerts, String> {
        let ids = match &value {
            Json::String(text) if text == "unknown" => return Ok(ActiveAlerts::Unknown),
            Json::Array(ids) => ids.iter().map(|id| id.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let mut ids = ids.ok_or_else(|| format!("expected a list of alerts or unknown, found {value}"))?;
        ids.sort_unstable();
        Ok(ActiveAlerts::These(ids))
    }
}

/// What is there beside what has happened.
pub(super) struct State {
    pub phase: Phase,
    pub version: String,
    pub storage: Map<String, Json>,
    /// Bytes of an instance, and processor time of a call, at most.
    pub used: (u64, Duration),
}

impl Expect {
    /// Whether the manifest has all that is looked for: what can never be seen
    /// is a mistake.
    pub(super) fn check(&self, manifest: &Manifest) -> Result<(), String> {
        let blueprint = &manifest.blueprint;
        let known = |section: &str, name: &String, known: Vec<&String>| match known.contains(&name) {
            true => Ok(()),
            false => Err(format!("the manifest declares no {section} {name:?}; {}", text::instead(name, known))),
        };
        for name in self.telemetry.keys() {
            known("telemetry", name, blueprint.telemetry.keys().collect())?;
        }
        for name in self.properties.keys() {
            known("property", name, blueprint.properties.keys().collect())?;
        }
        if let Some(ActiveAlerts::These(ids)) = &self.alerts {
            for id in ids.iter().filter(|id| !manifest.is_alert(id)) {
                known("alert", id, blueprint.alerts.keys().collect())?;
            }
        }
        let is_empty = self.telemetry.is_empty()
            && self.properties.is_empty()
            && self.samples.is_none()
            && self.alerts.is_none()
            && self.log.is_empty()
            && self.no_log.is_empty()
            && self.writes.is_none()
            && self.requests.is_empty()
            && self.no_requests.is_empty()
            && self.storage.is_empty()
            && self.phase.is_none()
            && self.version.is_none()
            && self.budgets == Budgets::default();
        if is_empty { Err("expect: expected something to look at".into()) } else { Ok(()) }
    }

    /// What is not as expected.
    pub(super) fn problems(&self, window: &Window, alerts: &Alerts, state: &State) -> Vec<String> {
        let mut problems = Vec::new();
        let sections =
            [("telemetry", &self.telemetry, &window.telemetry), ("properties", &self.properties, &window.properties)];
        for (section, expected, found) in sections {
            for (name, matcher) in expected {
                let value = found.get(name).map(json_of);
                problems.extend(matcher.check(&format!("{section}.{name}"), value.as_ref(), || "nothing sent".into()));
            }
        }
        if let Some(matcher) = &self.samples {
            let found = Json::from(window.samples);
            problems.extend(matcher.check("samples", Some(&found), String::new));
        }
        let looks_at_lists = !self.log.is_empty()
            || !self.no_log.is_empty()
            || self.writes.is_some()
            || !self.requests.is_empty()
            || !self.no_requests.is_empty();
        if window.has_lost && looks_at_lists {
            let text = "more than {MOST} lines, writes or requests since the expectations before: look more often";
            problems.push(text.replace("{MOST}", &MOST.to_string()));
        }
        problems.extend(self.alerts.as_ref().and_then(|expected| check_alerts(expected, alerts)));
        for LogLine { pattern, times } in &self.log {
            let found = window.logs.iter().filter(|(level, text)| is_line(pattern, level, text)).count();
            match times {
                Some(times) if found != *times => {
                    problems.push(format!("log: expected {:?} {times} times, found it {found} times", pattern.0));
                }
                None if found == 0 => {
                    let lines = text::list(window.logs.iter().map(|(level, text)| format!("{level}: {text}")));
                    problems.push(format!("log: expected a line like {:?}, found {lines}", pattern.0));
                }
                _ => {}
            }
        }
        for pattern in &self.no_log {
            if let Some((level, text)) = window.logs.iter().find(|(level, text)| is_line(pattern, level, text)) {
                problems.push(format!("no_log: expected no line like {:?}, found {level}: {text}", pattern.0));
            }
        }
        if let Some(expected) = self.writes.as_ref().filter(|expected| **expected != window.writes) {
            let (expected, found) = (text::list(expected), text::list(&window.writes));
            problems.push(format!("writes: expected {expected}; found {found}"));
        }
        let mut requests = window.requests.iter();
        for pattern in &self.requests {
            if !requests.any(|request| pattern.matches(request)) {
                let found = text::list(&window.requests);
                problems.push(format!("requests: expected {:?} in its place, found {found}", pattern.0));
                break;
            }
        }
        for pattern in &self.no_requests {
            if let Some(request) = window.requests.iter().find(|request| pattern.matches(request)) {
                problems.push(format!("no_requests: expected none like {:?}, found {request}", pattern.0));
            }
        }
        for (key, matcher) in &self.storage {
            problems.extend(matcher.check(&format!("storage.{key}"), state.storage.get(key), || "nothing".into()));
        }
        if let Some(expected) = self.phase.filter(|expected| *expected != state.phase) {
            problems.push(format!("phase: expected {}, found {}", expected.name(), state.phase.name()));
        }
        if let Some(expected) = self.version.as_ref().filter(|expected| **expected != state.version) {
            problems.push(format!("version: expected {expected}, found {}", state.version));
        }
        let (memory, cpu) = state.used;
        if let Some(most) = self.budgets.memory.filter(|most| memory > most.0) {
            problems.push(format!("budgets.memory: expected at most {most}, found {}", Size(memory)));
        }
        if let Some(most) = self.budgets.cpu.filter(|most| cpu > most.0) {
            problems.push(format!("budgets.cpu: expected at most {most} in a call, found {cpu:.1?}"));
        }
        problems
    }
}

fn is_line(pattern: &Pattern, level: &str, text: &str) -> bool {
    pattern.matches(text) || pattern.matches(&format!("{level}: {text}"))
}

fn check_alerts(expected: &ActiveAlerts, found: &Alerts) -> Option<String> {
    let active = match found {
        Alerts::Unknown => None,
        Alerts::None => Some(Vec::new()),
        Alerts::Active(active) => {
            let mut ids: Vec<String> = active.iter().map(|(id, _)| id.clone()).collect();
            ids.sort_unstable();
            Some(ids)
        }
    };
    let is_so = match expected {
        ActiveAlerts::Unknown => active.is_none(),
        ActiveAlerts::These(ids) => active.as_ref() == Some(ids),
    };
    let shown = |ids: Option<&Vec<String>>| ids.map_or("unknown".into(), |ids| format!("[{}]", ids.join(", ")));
    let wanted = match expected {
        ActiveAlerts::Unknown => None,
        ActiveAlerts::These(ids) => Some(ids),
    };
    (!is_so).then(|| format!("alerts: expected {}, found {}", shown(wanted), shown(active.as_ref())))
}

/// What a command is expected to give, held against what it gave.
pub(super) fn check_result(expected: &BTreeMap<String, Matcher>, found: &[(String, Value)]) -> Vec<String> {
    let problems = expected.iter().filter_map(|(name, matcher)| {
        let value = found.iter().find(|(other, _)| other == name).map(|(_, value)| json_of(value));
        matcher.check(&format!("result.{name}"), value.as_ref(), || "nothing".into())
    });
    problems.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patterns_match_as_a_reader_expects() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("*", "", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcdef", false),
            ("*the line*", "warning: the line is dead", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(Pattern(pattern.into()).matches(text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn values_are_compared_as_a_device_gives_them() {
        let matcher = |json| Matcher::try_from(json).unwrap();
        let as_sent = json!(f64::from(230.1_f32));
        for (expected, found, is_match) in [
            (json!(230.1), Some(&as_sent), true),
            (json!(230.2), Some(&as_sent), false),
            (json!({"near": 230, "within": 0.2}), Some(&as_sent), true),
            (json!({"near": 230, "within": 0.05}), Some(&as_sent), false),
            (json!({"between": [230, 231]}), Some(&as_sent), true),
            (json!({"any": true}), Some(&json!(null)), true),
            (json!({"any": true}), None, false),
            (json!({"absent": true}), None, true),
            (json!(null), Some(&json!(null)), true),
            (json!(null), None, false),
            (json!({"like": "o*"}), Some(&json!("on")), true),
            (json!([1, 2]), Some(&json!([1.0, 2])), true),
            (json!({"json": {"a": 1}}), Some(&json!({"a": 1})), true),
            (json!("1"), Some(&json!(1)), false),
        ] {
            assert_eq!(matcher(expected.clone()).matches(found), is_match, "{expected} {found:?}");
        }
        let error = Matcher::try_from(json!({"near": 1})).unwrap_err();
        assert!(error.starts_with("expected a value, or one of {near: 1.5, within: 0.1}"), "{error}");
    }

    #[test]
    fn a_budget_that_is_used_up_is_told() {
        let expect: Expect = serde_json::from_value(json!({"budgets": {"memory": "2MiB", "cpu": "5ms"}})).unwrap();
        let problems = |memory, cpu| {
            let state = State {
                phase: Phase::Running,
                version: String::new(),
                storage: Map::new(),
                used: (memory, Duration::from_millis(cpu)),
            };
            expect.problems(&Window::default(), &Alerts::None, &state)
        };
        assert_eq!(problems(2 << 20, 5), Vec::<String>::new());
        let expected = [
            "budgets.memory: expected at most 2.0 MiB, found 3.0 MiB",
            "budgets.cpu: expected at most 5ms in a call, found 6.0ms",
        ];
        assert_eq!(problems(3 << 20, 6), expected);
    }
}
