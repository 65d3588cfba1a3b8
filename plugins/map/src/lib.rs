//! Follows a register map: the driver of devices that are described and not
//! programmed.
//!
//! The map is a file in the driver, `map.json`, which `sandgate build` makes of the
//! section `map` of a manifest. `sandgate_map` says what stands in it, `plan` reads
//! registers together, `decode` knows what they mean.

mod decode;
mod plan;
mod settings;

use std::collections::BTreeMap;
use std::time::Duration;

use sandgate_driver::modbus::{ModbusError, Unit};
use sandgate_driver::{
    Attribute, Command, CommandError, Configuration, Context, Describe, Driver, Error, Found, Poller, Sample, TimerId,
    Turn, Value, alerts, attribute, debug, files, publish_properties,
};
use sandgate_map::{Condition, Entry, Map, Plain, Write};
use serde::{Deserialize, Serialize};

use decode::{registers, value};
use plan::{Block, Image, blocks};
use settings::Configured;

/// The map's name among the files of the driver.
const FILE: &str = "map.json";
/// What the log says of the kind of problem.
const LOST: &str = "lost";

/// A device with a register map.
struct Mapped {
    map: Map,
    configured: Configured,
    number: u8,
    unit: Unit,
    poller: Poller,
    groups: Vec<Group>,
    polls: u64,
    /// The last value of each attribute of the telemetry.
    values: BTreeMap<String, Value>,
    identity: Option<BTreeMap<String, String>>,
}

/// What is read in the same polls.
struct Group {
    /// In each so manieth poll.
    every: u64,
    names: Vec<String>,
    blocks: Vec<Block>,
}

/// What the next version of the driver is told: which device answers, and its properties.
#[derive(Serialize, Deserialize)]
struct Memory {
    unit: u8,
    identity: BTreeMap<String, String>,
}

impl Driver for Mapped {
    fn start(context: Context) -> Result<Self, Error> {
        let file = files::read(FILE).ok_or("expected map.json in the driver; build it with `sandgate build`")?;
        let map: Map = serde_json::from_slice(&file)?;
        let configured = Configured::of(&context.configuration)?;
        let (number, unit) = open(&map, &configured)?;
        let every = configured.time("every", &map.every)?;
        let properties = configured.time("properties_every", &map.properties_every)?;
        // There is one device in an instance, and it keeps its name.
        let device: &'static str = Box::leak(map.device.clone().into_boxed_str());
        let poller = Poller::start(device, time(every), time(properties))?;
        let memory = context.restored.and_then(|state| serde_json::from_slice::<Memory>(&state).ok());
        let identity = memory.filter(|memory| memory.unit == number).map(|memory| memory.identity);
        let groups = groups(&map, every);
        let values = BTreeMap::new();
        let mapped = Mapped { map, configured, number, unit, poller, groups, polls: 0, values, identity };
        if mapped.identity.is_some() {
            mapped.publish()?;
        }
        Ok(mapped)
    }

    fn on_timer(&mut self, timer: TimerId) -> Result<(), Error> {
        match self.poller.turn(timer) {
            Turn::Poll => self.poll(),
            Turn::Properties => {
                self.identify();
                self.publish()
            }
        }
    }

    fn configure(&mut self, configuration: Configuration) -> Result<(), Error> {
        // All that can fail comes first: after an error the old configuration goes on.
        let configured = Configured::of(&configuration)?;
        let (number, unit) = open(&self.map, &configured)?;
        let every = configured.time("every", &self.map.every)?;
        self.poller.restart(time(every))?;
        if number != self.number {
            self.identity = None;
            self.values.clear();
        }
        self.groups = groups(&self.map, every);
        (self.polls, self.number, self.unit, self.configured) = (0, number, unit, configured);
        Ok(())
    }

    fn handle_command(&mut self, command: Command) -> Result<Vec<Attribute>, CommandError> {
        let Some(what) = self.map.commands.get(&command.name) else {
            return Err(CommandError::Unsupported(format!("no command {}", command.name)));
        };
        let arguments: BTreeMap<String, Plain> = command.read()?;
        // What does not fit is found before anything is written.
        let mut writes = Vec::new();
        for write in &what.writes {
            let given = write.argument.as_ref().map_or(write.value.as_ref(), |name| arguments.get(name));
            // An argument that may be left out, and was.
            let Some(given) = given else { continue };
            let words = registers(write, given, self.map.words);
            let name = write.argument.as_deref().unwrap_or("value");
            writes.push((write, words.map_err(|why| CommandError::InvalidArgument(format!("{name}: {why}")))?));
        }
        for (write, words) in writes {
            self.write(write, &words)?;
        }
        let mut image = Image::default();
        image.read(&self.unit, &blocks(what.returns.values(), &self.map))?;
        let result = what.returns.iter().filter_map(|(name, entry)| Some(attribute(name, self.of(entry, &image)?)));
        let result = result.collect();
        // What was written shows at once.
        if !what.writes.is_empty() {
            self.poller.poll_soon().map_err(|error| CommandError::Failed(error.to_string()))?;
        }
        Ok(result)
    }

    fn snapshot(&self) -> Vec<u8> {
        let Some(identity) = self.identity.clone() else { return Vec::new() };
        serde_json::to_vec(&Memory { unit: self.number, identity }).unwrap_or_default()
    }
}

impl Mapped {
    /// Reads what is due and sends it; a silent device is no error of the driver.
    fn poll(&mut self) -> Result<(), Error> {
        let due: Vec<&Group> = self.groups.iter().filter(|group| self.polls.is_multiple_of(group.every)).collect();
        let mut image = Image::default();
        let read = due.iter().try_for_each(|group| image.read(&self.unit, &group.blocks));
        if let Err(error) = read {
            return self.lost(&error);
        }
        let names = due.iter().flat_map(|group| &group.names);
        let read: Vec<(String, Value)> = names
            .filter_map(|name| {
                let value = self.of(self.map.telemetry.get(name)?, &image)?;
                Some((name.clone(), value))
            })
            .collect();
        self.polls += 1;
        self.found()?;
        self.values.extend(read.iter().cloned());
        let active = self.active(&image);
        alerts::set_ids(active.iter().copied()).map_err(|rejected| format!("{rejected:?}"))?;
        let told = self.told(&active, false);
        let attributes = read.into_iter().map(|(name, value)| Attribute { name, value });
        Ok(Sample::new().with_all(attributes.chain(told)).send()?)
    }

    fn found(&mut self) -> Result<(), Error> {
        let found = self.poller.found();
        if found == Found::Again {
            // It may be another one by now.
            self.identity = None;
        }
        if found != Found::Still && self.identity.is_none() && !self.map.properties.is_empty() {
            self.poller.properties_soon()?;
        }
        Ok(())
    }

    fn lost(&mut self, error: &ModbusError) -> Result<(), Error> {
        if let ModbusError::NotGranted(text) | ModbusError::InvalidArgument(text) = error {
            return Err(text.into());
        }
        self.poller.lost(LOST, &error.describe());
        // All of it is read when the device is back.
        self.polls = 0;
        alerts::unknown();
        let active: Vec<&str> =
            self.map.alerts.iter().filter(|(_, condition)| condition.lost).map(|(id, _)| id.as_str()).collect();
        let told = self.told(&active, true);
        if told.is_empty() {
            return Ok(());
        }
        Ok(Sample::new().with_all(told).send()?)
    }

    /// What is sent of how the device is.
    fn told(&self, active: &[&str], is_lost: bool) -> Vec<Attribute> {
        let told = self.map.telemetry.iter().filter_map(|(name, entry)| {
            let link = if is_lost { &entry.lost } else { &entry.ok };
            if let Some(text) = link {
                return Some(attribute(name, text.as_str()));
            }
            let own = entry.alerts.as_ref()?;
            let active = active.iter().filter(|id| own.iter().any(|own| own == **id));
            Some(attribute(name, active.map(|id| (*id).to_owned()).collect::<Vec<String>>()))
        });
        told.collect()
    }

    /// What an entry says; none when it was not read.
    fn of(&self, entry: &Entry, image: &Image) -> Option<Value> {
        match &entry.text {
            Some(text) => Some(Value::Text(text.clone())),
            None => Some(value(entry, image.words(entry)?, self.map.words, &self.configured)),
        }
    }

    /// The alerts that are active now.
    fn active(&self, image: &Image) -> Vec<&str> {
        let is_active = |condition: &Condition| {
            let value = match (&condition.of, &condition.at) {
                (Some(name), _) => self.values.get(name).cloned(),
                (None, Some(entry)) => self.of(entry, image),
                (None, None) => None,
            };
            value.is_some_and(|value| holds(condition, &value))
        };
        self.map.alerts.iter().filter(|(_, condition)| is_active(condition)).map(|(id, _)| id.as_str()).collect()
    }

    /// Asks the device who it is, unless that is known. Best effort: the next
    /// turn of the properties tries again.
    fn identify(&mut self) {
        if self.identity.is_some() || !self.poller.is_answered() {
            return;
        }
        let mut image = Image::default();
        match image.read(&self.unit, &blocks(self.map.properties.values(), &self.map)) {
            Ok(()) => {
                let read = self.map.properties.iter().filter(|(_, entry)| entry.place().is_some());
                let read = read.filter_map(|(name, entry)| Some((name.clone(), self.of(entry, &image)?)));
                let known = read.filter(|(_, value)| *value != Value::Unknown);
                self.identity = Some(known.map(|(name, value)| (name, packed(&value))).collect());
            }
            Err(error) => debug!("reading the properties: {}", error.describe()),
        }
    }

    fn publish(&self) -> Result<(), Error> {
        let fixed = self.map.properties.iter();
        let fixed = fixed.filter_map(|(name, entry)| Some(attribute(name, entry.text.as_deref()?)));
        let read = self.identity.iter().flatten().map(|(name, value)| attribute(name, unpacked(value)));
        let properties: Vec<Attribute> = fixed.chain(read).collect();
        if properties.is_empty() { Ok(()) } else { Ok(publish_properties(&properties)?) }
    }

    fn write(&self, write: &Write, words: &[u16]) -> Result<(), CommandError> {
        match (write.coil, write.holding, words) {
            (Some(coil), _, [bit, ..]) => self.unit.write_coil(coil, *bit != 0)?,
            (None, Some(address), [word]) if !write.many => self.unit.write_register(address, *word)?,
            (None, Some(address), words) => self.unit.write_registers(address, words)?,
            _ => {}
        }
        Ok(())
    }
}

/// Properties are kept as JSON.
fn packed(value: &Value) -> String {
    match value {
        Value::Text(text) => serde_json::Value::from(text.as_str()).to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(value) => value.to_string(),
        Value::TextList(texts) => serde_json::Value::from(texts.clone()).to_string(),
        Value::Json(text) => text.clone(),
        Value::Unknown => "null".into(),
    }
}

fn unpacked(text: &str) -> Value {
    use serde_json::Value as Json;
    match serde_json::from_str(text) {
        Ok(Json::String(text)) => Value::Text(text),
        Ok(Json::Bool(value)) => Value::Boolean(value),
        Ok(Json::Number(number)) => {
            number.as_i64().map_or_else(|| number.as_f64().map_or(Value::Unknown, Value::Float), Value::Integer)
        }
        Ok(Json::Array(list)) => {
            Value::TextList(list.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect())
        }
        _ => Value::Unknown,
    }
}

/// Whether a value is what an alert looks for.
fn holds(condition: &Condition, value: &Value) -> bool {
    #[allow(clippy::cast_precision_loss)] // of counters beyond 2^53
    let number = match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::Boolean(value) => Some(f64::from(u8::from(*value))),
        _ => None,
    };
    let is = |plain: &Plain| match plain {
        Plain::Boolean(expected) => number == Some(f64::from(u8::from(*expected))),
        Plain::Number(expected) => number == Some(*expected),
        Plain::Text(expected) => match value {
            Value::Text(text) => text == expected,
            Value::TextList(texts) => texts.contains(expected),
            _ => false,
        },
    };
    if *value == Value::Unknown {
        return false;
    }
    let Condition { is: expected, is_not, above, below, .. } = condition;
    if expected.is_none() && is_not.is_none() && above.is_none() && below.is_none() {
        return number.is_some_and(|number| number != 0.0);
    }
    expected.as_ref().is_none_or(is)
        && is_not.as_ref().is_none_or(|plain| !is(plain))
        && above.is_none_or(|least| number.is_some_and(|number| number > least))
        && below.is_none_or(|most| number.is_some_and(|number| number < most))
}

/// The unit of a configuration, with the times that the device needs.
fn open(map: &Map, configured: &Configured) -> Result<(u8, Unit), Error> {
    let number = configured.unit(&map.unit)?;
    let told = |error: ModbusError| Error::from(error.describe());
    let unit = Unit::open(&map.line, number).map_err(told)?;
    if let Some(timeout) = &map.timeout {
        unit.set_timeout(configured.time("timeout", timeout)?).map_err(told)?;
    }
    if let Some(pause) = &map.pause {
        unit.set_pause(configured.time("pause", pause)?).map_err(told)?;
    }
    Ok((number, unit))
}

fn time(milliseconds: f64) -> Duration {
    Duration::try_from_secs_f64(milliseconds / 1000.0).unwrap_or_default()
}

/// What is read how often, where a poll takes place every so many milliseconds.
fn groups(map: &Map, every: f64) -> Vec<Group> {
    let mut groups: BTreeMap<u64, (Vec<String>, Vec<&Entry>)> = BTreeMap::new();
    for (name, entry) in &map.telemetry {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // some polls
        let polls = entry.every.as_deref().and_then(sandgate_map::milliseconds).map(|own| (own / every).round() as u64);
        let (names, entries) = groups.entry(polls.unwrap_or(1).max(1)).or_default();
        names.push(name.clone());
        entries.push(entry);
    }
    groups.entry(1).or_default().1.extend(map.alerts.values().filter_map(|condition| condition.at.as_ref()));
    let of = |(every, (names, entries)): (u64, (Vec<String>, Vec<&Entry>))| Group {
        every,
        names,
        blocks: blocks(entries.into_iter(), map),
    };
    groups.into_iter().map(of).collect()
}

// On the host it is only tested.
const _: () = sandgate_driver::is_driver::<Mapped>();

#[cfg(target_arch = "wasm32")]
type Adapter = sandgate_driver::Adapter<Mapped>;
#[cfg(target_arch = "wasm32")]
sandgate_driver::bindings::export_bindings!(Adapter with_types_in sandgate_driver::bindings);
