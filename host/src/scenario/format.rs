//! How a file of scenarios is written, and what a manifest has to say to it.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value as Json};
use serde_saphyr::Spanned;

use super::Scenario;
use super::expect::{Expect, Pattern};
use super::fault::Fault;
use super::registers::{Bits, Words};
use crate::bus::Frame;
use crate::config::Limits;
use crate::manifest::yaml;
use crate::network::Target;
use crate::text;
use crate::units::Span;

/// What stands in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Holds for all scenarios of the file.
    #[serde(default)]
    given: Given,
    scenarios: Ordered<Vec<Spanned<Step>>>,
}

/// What is there before the driver starts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Given {
    /// What the wall clock says at first, such as `2026-01-31T12:00:00Z`.
    pub time: Option<String>,
    pub configuration: Map<String, Json>,
    pub limits: Limits,
    pub health_window: Option<Span>,
    /// By the driver's name for its Modbus line, or by `host:port`.
    pub devices: Ordered<Device>,
    /// A tape beside the file, from which all that is not given answers.
    pub tape: Option<PathBuf>,
    /// What is granted beside the devices.
    pub grants: Grants,
}

/// See `Given::grants`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Grants {
    pub tcp: Vec<Target>,
    pub http: Vec<Target>,
}

/// A simulated device, or what of one changes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Device {
    /// The units on a line, by address; others are silent.
    Modbus(BTreeMap<u8, Unit>),
    Http(Http),
    Tcp(Tcp),
    /// What is on a serial port.
    Serial(Tcp),
    /// The others on a CAN bus.
    Can(Can),
    /// Whether an output is on.
    Output(bool),
    Input(Input),
    /// What an analog input shows.
    Analog(f64),
    /// The units of a line as they answered while they were captured.
    Capture(CaptureFile),
}

/// A file beside that of the scenarios, of tcpdump or Wireshark.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Json")]
pub(super) struct CaptureFile {
    pub file: PathBuf,
    /// The address of the device, where there are several: `host:port`.
    pub server: Option<String>,
}

impl TryFrom<Json> for CaptureFile {
    type Error = String;

    fn try_from(value: Json) -> Result<CaptureFile, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Named {
            file: PathBuf,
            server: Option<String>,
        }
        match value {
            Json::String(file) => Ok(CaptureFile { file: file.into(), server: None }),
            other => match serde_json::from_value::<Named>(other) {
                Ok(Named { file, server }) => Ok(CaptureFile { file, server }),
                Err(error) => Err(format!("expected a file or {{ file: a.pcap, server: \"host:502\" }}: {error}")),
            },
        }
    }
}

/// A Modbus unit. What it has no address for it refuses.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Unit {
    /// By the first address.
    pub holding: BTreeMap<u16, Words>,
    pub input: BTreeMap<u16, Words>,
    pub coils: BTreeMap<u16, Bits>,
    pub discrete: BTreeMap<u16, Bits>,
    /// What stands between the lowest and the highest address of a table.
    pub gaps: Option<Gaps>,
    /// Holding registers that keep their values whatever is written.
    pub read_only: Vec<u16>,
    /// Holding and input registers that are zero once they were read.
    pub clears: Vec<u16>,
}

/// What a unit answers for an address between others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Gaps {
    Zeros,
    Refused,
}

/// A web server.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Http {
    /// What `${name}` in an answer stands for.
    pub state: Map<String, Json>,
    /// By `METHOD /path?query`, where `*` stands for anything.
    pub routes: Ordered<Answers>,
}

/// One answer, or several that come in turn; the last one stays.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Json")]
pub(super) struct Answers(pub Vec<Answer>);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Answer {
    pub status: Option<u16>,
    pub json: Option<Json>,
    pub text: Option<String>,
    pub headers: BTreeMap<String, String>,
    /// What becomes of the state before the answer.
    pub set: Map<String, Json>,
}

impl TryFrom<Json> for Answers {
    type Error = String;

    fn try_from(value: Json) -> Result<Answers, String> {
        let answers = match value {
            Json::Array(answers) if answers.is_empty() => return Err("expected at least one answer".into()),
            Json::Array(answers) => answers.into_iter().map(serde_json::from_value).collect(),
            answer => serde_json::from_value(answer).map(|answer| vec![answer]),
        };
        answers.map(Answers).map_err(|error| error.to_string())
    }
}

/// A device on a TCP connection or a serial port: what it says at first, and to
/// what is said to it. Texts, or bytes as `hex …`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tcp {
    pub greeting: Option<String>,
    pub answers: BTreeMap<String, Texts>,
}

/// What others on a CAN bus send: frames such as `123#0102`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Can {
    /// Again and again.
    pub sends: Option<Frames>,
    /// How often; 1s by default.
    pub every: Option<Span>,
    /// When a frame comes that begins so.
    pub answers: BTreeMap<String, Frames>,
}

/// One frame or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Json")]
pub(super) struct Frames(pub Vec<Frame>);

impl TryFrom<Json> for Frames {
    type Error = String;

    fn try_from(value: Json) -> Result<Frames, String> {
        let Names(texts) =
            Names::try_from(value).map_err(|_| "expected a frame such as 123#0102, or a list of frames")?;
        texts.iter().map(|text| text.parse()).collect::<Result<_, _>>().map(Frames)
    }
}

/// Whether an input is on, and its pulses, where they are said.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "Json")]
pub(super) struct Input {
    pub on: Option<bool>,
    pub count: Option<u64>,
}

impl TryFrom<Json> for Input {
    type Error = String;

    fn try_from(value: Json) -> Result<Input, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Named {
            on: Option<bool>,
            count: Option<u64>,
        }
        match value {
            Json::Bool(on) => Ok(Input { on: Some(on), count: None }),
            other => match serde_json::from_value::<Named>(other) {
                Ok(Named { on, count }) => Ok(Input { on, count }),
                Err(error) => Err(format!("expected true, false, or {{ on: true, count: 7 }}: {error}")),
            },
        }
    }
}

/// One text, or several that come in turn; the last one stays.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Json")]
pub(super) struct Texts(pub Vec<String>);

impl TryFrom<Json> for Texts {
    type Error = String;

    fn try_from(value: Json) -> Result<Texts, String> {
        match serde_json::from_value::<Names>(value) {
            Ok(Names(texts)) if !texts.is_empty() => Ok(Texts(texts)),
            _ => Err("expected a text, or a list of texts that come in turn".into()),
        }
    }
}

/// One thing that happens, or that is looked at.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// In the first place only: what differs from the file's.
    Given(Box<Given>),
    Advance(Span),
    Expect(Box<Expect>),
    /// What the devices hold from now on; the rest stays.
    Change(Ordered<Device>),
    /// By device, or by `line/unit`.
    Break(BTreeMap<String, Fault>),
    Repair(Names),
    Command(Box<CommandStep>),
    Configure(ConfigureStep),
    Swap(SwapStep),
    Restart,
    /// The driver crashes.
    Trap,
    Lose(Lost),
}

/// A step, its line and how it is written.
#[derive(Debug, Clone)]
pub(super) struct PlacedStep {
    pub line: u64,
    pub step: Step,
    pub text: String,
}

impl PlacedStep {
    fn of(step: Spanned<Step>, file: &str) -> PlacedStep {
        let line = step.referenced.line();
        PlacedStep { line, step: step.value, text: text_at(file, line) }
    }
}

/// Reads steps alone.
pub(super) fn read_steps(text: &str) -> Result<Vec<PlacedStep>, String> {
    let steps: Vec<Spanned<Step>> = yaml::read(text).map_err(|error| with_advice(&error))?;
    Ok(steps.into_iter().map(|step| PlacedStep::of(step, text)).collect())
}

/// The item of a list that begins in a line, without its indentation.
fn text_at(file: &str, line: u64) -> String {
    let mut lines = file.lines().skip(usize::try_from(line).unwrap_or(1).saturating_sub(1));
    let first = lines.next().unwrap_or_default();
    let indent = first.len() - first.trim_start().len();
    let own = |line: &&str| line.trim().is_empty() || line.len() - line.trim_start().len() > indent;
    let all: Vec<&str> = [first].into_iter().chain(lines.take_while(own)).collect();
    let text: Vec<&str> = all.iter().map(|line| line.get(indent..).unwrap_or_default()).collect();
    text.join("\n").trim_end().to_owned()
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CommandStep {
    pub name: String,
    #[serde(default)]
    pub arguments: Map<String, Json>,
    /// What is expected of the result.
    pub result: Option<BTreeMap<String, super::expect::Matcher>>,
    /// That it fails: `code: text`, where `*` stands for anything.
    pub error: Option<Pattern>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigureStep {
    /// What changes.
    pub configuration: Map<String, Json>,
    /// That it is refused, and why.
    pub rejected: Option<Pattern>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SwapStep {
    /// The new component, beside the file; without it the same one.
    pub driver: Option<PathBuf>,
    /// That it does not take over, and why.
    pub rejected: Option<Pattern>,
}

/// What is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Lost {
    /// All that the driver has stored.
    Storage,
}

/// One name or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Json")]
pub(super) struct Names(pub Vec<String>);

impl TryFrom<Json> for Names {
    type Error = String;

    fn try_from(value: Json) -> Result<Names, String> {
        let wrong = || format!("expected the name of a device or a list of names, found {value}");
        let name = |value: &Json| value.as_str().map(str::to_owned).ok_or_else(wrong);
        match &value {
            Json::Array(names) => Ok(Names(names.iter().map(name).collect::<Result<_, _>>()?)),
            one => Ok(Names(vec![name(one)?])),
        }
    }
}

/// A mapping in the order in which it is written.
#[derive(Debug, Clone)]
pub(super) struct Ordered<T>(pub Vec<(String, T)>);

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Ordered(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Ordered<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }

        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// Reads what a file gives for all its scenarios. An error begins with line and column.
pub(super) fn read_given(text: &str) -> Result<Given, String> {
    let file: File = yaml::read(text).map_err(|error| with_advice(&error))?;
    Ok(file.given)
}

/// Reads a file. An error begins with line and column.
pub(super) fn read(text: &str, path: &Path) -> Result<Vec<Scenario>, String> {
    let file: File = yaml::read(text).map_err(|error| with_advice(&error))?;
    let scenarios = file.scenarios.0.into_iter().map(|(name, steps)| {
        let mut steps: Vec<PlacedStep> = steps.into_iter().map(|step| PlacedStep::of(step, text)).collect();
        let (mut given, mut given_line) = (file.given.clone(), 1);
        if let Some(PlacedStep { step: Step::Given(_), line, .. }) = steps.first() {
            given_line = *line;
            if let Step::Given(own) = steps.remove(0).step {
                given.lay_over(*own);
            }
        }
        Scenario { file: path.to_owned(), name, given, given_line, steps, tape: None, captures: BTreeMap::new() }
    });
    let scenarios: Vec<Scenario> = scenarios.collect();
    if scenarios.is_empty() {
        Err("1:1: expected at least one scenario under `scenarios`".into())
    } else {
        Ok(scenarios)
    }
}

/// An error about a word that is not known, with the one that is meant.
fn with_advice(error: &str) -> String {
    let unknown = ["unknown field `", "unknown variant `"].into_iter().find_map(|kind| error.split_once(kind));
    let parts = unknown.and_then(|(place, rest)| Some((place, rest.split_once("`, expected ")?)));
    let Some((place, (word, known))) = parts else { return error.to_owned() };
    let known = known.trim_start_matches("one of ").split(", ").flat_map(|words| words.split(" or "));
    let known = known.map(|word| word.trim_matches('`'));
    format!("{place}unknown word {word:?}; {}", text::instead(word, known))
}

/// Lays values over others: tables are merged, the rest is replaced.
pub(super) fn lay_over(below: &mut Map<String, Json>, above: Map<String, Json>) {
    for (name, value) in above {
        match (below.get_mut(&name), value) {
            (Some(Json::Object(below)), Json::Object(above)) => lay_over(below, above),
            (_, value) => drop(below.insert(name, value)),
        }
    }
}

/// Limits over others.
fn merged(own: Limits, below: &Limits) -> Limits {
    Limits {
        memory: own.memory.or(below.memory),
        cpu: own.cpu.or(below.cpu),
        call: own.call.or(below.call),
        telemetry: own.telemetry.or(below.telemetry),
        logs: own.logs.or(below.logs),
        storage: own.storage.or(below.storage),
        outbox_size: own.outbox_size.or(below.outbox_size),
        outbox_age: own.outbox_age.or(below.outbox_age),
    }
}

impl Given {
    fn lay_over(&mut self, own: Given) {
        let Given { time, configuration, limits, health_window, devices, tape, grants } = own;
        self.tape = tape.or(self.tape.take());
        self.time = time.or(self.time.take());
        lay_over(&mut self.configuration, configuration);
        self.limits = merged(limits, &self.limits);
        self.health_window = health_window.or(self.health_window);
        // One after another: the later change what the earlier have.
        self.devices.0.extend(devices.0);
        self.grants.tcp.extend(grants.tcp);
        self.grants.http.extend(grants.http);
    }

    /// What the wall clock says at first, in milliseconds since 1970.
    pub(super) fn begin(&self) -> Result<u64, String> {
        let text = self.time.as_deref().unwrap_or("2026-01-01T00:00:00Z");
        let time = humantime::parse_rfc3339_weak(text)
            .map_err(|_| format!("given.time: expected a time such as 2026-01-31T12:00:00Z, found {text:?}"))?;
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Ok(u64::try_from(since.as_millis()).unwrap_or_default())
    }
}

impl Device {
    /// The word for what it is.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Device::Modbus(_) => "modbus",
            Device::Http(_) => "http",
            Device::Tcp(_) => "tcp",
            Device::Serial(_) => "serial",
            Device::Can(_) => "can",
            Device::Output(_) => "output",
            Device::Input(_) => "input",
            Device::Analog(_) => "analog",
            Device::Capture(_) => "capture",
        }
    }
}
