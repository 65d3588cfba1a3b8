//! What happens in a run of exploring: random steps, made of what scenarios do and
//! of what a manifest allows.

use fastrand::Rng;
use serde_json::{Map, Value as Json, json};

use super::super::Scenario;
use super::super::format::{Device, PlacedStep, Step};
use crate::manifest::{Manifest, Parameter, Type};

/// Steps of a run, at most.
const STEPS: usize = 14;
/// How a run begins, so that there is something to compare with.
const BEGIN: &str = "- advance: 30s";

/// Random steps, each as it is written in a file.
pub(super) fn steps(random: &mut Rng, base: &Scenario, scenarios: &[Scenario], manifest: &Manifest) -> Vec<String> {
    let devices = &base.given.devices.0;
    let same = || scenarios.iter().filter(|other| other.file == base.file).flat_map(|other| &other.steps);
    let is_configure = |step: &&PlacedStep| matches!(&step.step, Step::Configure(step) if step.rejected.is_none());
    let configurations: Vec<&str> = same().filter(is_configure).map(|step| step.text.as_str()).collect();
    let is_change = |step: &&PlacedStep| matches!(step.step, Step::Change(_));
    let changes: Vec<&str> = same().filter(is_change).map(|step| step.text.as_str()).collect();
    let commands: Vec<(&String, Map<String, Json>)> = same()
        .filter_map(|step| match &step.step {
            Step::Command(command) if manifest.blueprint.commands.contains_key(&command.name) => {
                Some((&command.name, command.arguments.clone()))
            }
            _ => None,
        })
        .collect();
    let mut steps = vec![BEGIN.to_owned()];
    for _ in 0..random.usize(1..STEPS) {
        let step = match random.u8(..100) {
            0..35 => None,
            35..60 => random.choice(devices).map(|(name, device)| fault(random, name, device)),
            60..70 => random.choice(devices).map(|(name, _)| format!("- repair: {}", json!(name))),
            70..85 => command(random, &commands, manifest),
            85..88 => random.choice(&changes).map(|text| (*text).to_owned()),
            88..92 => random.choice(&configurations).map(|text| (*text).to_owned()),
            92..96 => Some("- swap: {}".to_owned()),
            96..98 => Some("- restart".to_owned()),
            _ => Some("- lose: storage".to_owned()),
        };
        steps.push(step.unwrap_or_else(|| format!("- advance: {}ms", some_time(random))));
    }
    steps
}

/// From a millisecond to some minutes, short ones as often as long ones.
fn some_time(random: &mut Rng) -> u64 {
    let exponent = random.f64() * 5.6;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // from 1 to some 100,000
    let time = 10_f64.powf(exponent) as u64;
    time.max(1)
}

fn fault(random: &mut Rng, name: &str, device: &Device) -> String {
    let slow = format!("slow {}ms", random.u32(1..6000));
    let (own, place): (Vec<String>, String) = match device {
        Device::Modbus(units) => {
            let unit = random.choice(units.keys()).filter(|_| random.u8(..4) == 0);
            let place = unit.map_or(name.to_owned(), |unit| format!("{name}/{unit}"));
            (vec![format!("exception {}", random.u8(1..12)), "wrong_count".into()], place)
        }
        Device::Http(_) => {
            let status = random.choice([401, 404, 429, 500, 503]).unwrap_or(500);
            (vec![format!("status {status}")], name.to_owned())
        }
        Device::Capture(_) => (vec![format!("exception {}", random.u8(1..12))], name.to_owned()),
        _ => (Vec::new(), name.to_owned()),
    };
    if matches!(device, Device::Output(_) | Device::Input(_) | Device::Analog(_)) {
        return format!("- break: {{ {}: refuses }}", json!(place));
    }
    let common = ["timeout", "garbage", "closes", "refuses", &slow].map(str::to_owned);
    let all: Vec<String> = own.into_iter().chain(common).collect();
    let fault = random.choice(all).unwrap_or_default();
    format!("- break: {{ {}: {fault} }}", json!(place))
}

/// A command of a scenario, or one with arguments that its manifest allows.
fn command(random: &mut Rng, known: &[(&String, Map<String, Json>)], manifest: &Manifest) -> Option<String> {
    let (name, arguments) = match random.choice(known).filter(|_| random.bool()) {
        Some((name, arguments)) => ((*name).clone(), arguments.clone()),
        None => {
            let (name, command) = random.choice(&manifest.blueprint.commands)?;
            let chosen = command.arguments.iter().filter(|(_, parameter)| parameter.required || random.bool());
            let chosen: Vec<(&String, &Parameter)> = chosen.collect();
            let arguments =
                chosen.into_iter().filter_map(|(name, parameter)| Some((name.clone(), some_value(random, parameter)?)));
            (name.clone(), arguments.collect())
        }
    };
    Some(format!("- {}", json!({"command": {"name": name, "arguments": arguments}})))
}

fn some_value(random: &mut Rng, parameter: &Parameter) -> Option<Json> {
    if let Some(allowed) = &parameter.allowed {
        return random.choice(allowed.values(parameter.kind));
    }
    let (min, max) = (parameter.min.unwrap_or(-1000.0), parameter.max.unwrap_or(1000.0));
    let number = min + (max - min) * random.f64();
    Some(match parameter.kind {
        Type::Boolean => random.bool().into(),
        #[allow(clippy::cast_possible_truncation)] // within bounds of a manifest
        Type::Integer => (number.round() as i64).into(),
        Type::Float => number.into(),
        Type::String => {
            let letters = (0..random.usize(..20)).map(|_| random.alphanumeric());
            letters.collect::<String>().into()
        }
        _ => return None,
    })
}
