//! `sandgate replay`: runs a driver again on a tape.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use sandgate::clock::hours;
use sandgate::gate::{self, Grounds};
use sandgate::sandbox::replay::{Replay, describe, describe_side, replay};
use sandgate::sandbox::{Compiler, Driver, Sandbox};
use sandgate::tape::{Kind, Tape};
use sandgate::text;
use serde_json::{Value as Json, json};

use super::Outcome;
use crate::say::{say, tell};
use crate::toolchain;

/// What to replay.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The tape.
    tape: PathBuf,
    /// The driver, when it is not on the tape.
    #[arg(long)]
    driver: Option<PathBuf>,
    /// Stop before the first call after this time in the driver's life, such as 5m.
    #[arg(long, value_parser = humantime::parse_duration)]
    until: Option<Duration>,
    /// Run this other version on what the device did as well, and say what it does otherwise, as
    /// before a swap.
    #[arg(long, value_name = "DRIVER", conflicts_with_all = ["until", "log", "events"])]
    with: Option<PathBuf>,
    /// Show what the driver logged up to there.
    #[arg(long)]
    log: bool,
    /// Show everything that crossed between the driver and the host up to there.
    #[arg(long)]
    events: bool,
}

/// Replays and tells.
pub(super) async fn run(options: Options, json: bool) -> Result<Outcome> {
    let tape = Tape::load(&options.tape).map_err(|problem| anyhow!("{}: {problem}", options.tape.display()))?;
    let until = options.until;
    if !json {
        introduce(&tape);
        if options.log || options.events {
            show_events(&tape, until, options.events);
        }
    }
    let component = match (&options.driver, &tape.component) {
        (Some(path), _) => std::fs::read(path).with_context(|| format!("reading {}", path.display()))?,
        (None, Some(component)) => component.clone(),
        (None, None) => return Err(anyhow!("the driver is not on the tape; name its file with --driver")),
    };
    let sandbox = Sandbox::new(Compiler::InProcess, toolchain::cache().as_deref())?;
    let driver = sandbox.prepare(component.into()).await.context("the driver of the tape")?;
    if let Some(path) = &options.with {
        let new = sandbox.load(path).await?;
        return compare((driver, new), tape, json).await;
    }
    let replay = replay(&driver, &tape, until).await.map_err(|problem| anyhow!(problem))?;
    match json {
        true => say!("{:#}", as_json(&tape, &replay)),
        false => tell_of(&replay),
    }
    Ok(if replay.difference.is_none() { Outcome::Done } else { Outcome::Failed })
}

/// Compares two versions on what the device did; all that is on the tape is granted.
pub(super) async fn compare((old, new): (Driver, Driver), tape: Tape, json: bool) -> Result<Outcome> {
    let grounds = Grounds::of(&tape, &[&old.manifest.driver.requests, &new.manifest.driver.requests]);
    let work = move || gate::compare((&Arc::new(old), &Arc::new(new)), &tape, &grounds);
    let comparison = tokio::task::spawn_blocking(work).await.context("a bug in the gate")?;
    let comparison = comparison.map_err(|problem| anyhow!(problem.text))?;
    match json {
        true => say!("{}", serde_json::to_string_pretty(&comparison)?),
        false => say!("{}", text::visible(&comparison.to_string())),
    }
    Ok(if comparison.is_same(0.0) { Outcome::Done } else { Outcome::Failed })
}

/// The driver of a tape, as a gateway has kept it.
pub(super) fn driver_of(tape: &Tape, state: &Path) -> Option<Vec<u8>> {
    let digest = &tape.header.driver.digest;
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| std::fs::read(state.join("drivers").join(format!("{digest}.wasm"))).ok()).flatten()
}

fn introduce(tape: &Tape) {
    let header = &tape.header;
    let (calls, from, to) = tape.extent();
    let began = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_millis(header.began));
    let driver = format!("{} {} ({:.12})", header.driver.name, header.driver.version, header.driver.digest);
    let line = format!(
        "{}: {driver}, begun {began}, {calls} calls from {} to {}, recorded by {}",
        header.device,
        hours(from),
        hours(to),
        header.host
    );
    say!("{}", text::visible(&line));
    if let Some(problem) = &header.problem {
        say!("the driver {}", problem.lines().map(text::visible).collect::<Vec<_>>().join("\n  "));
    }
    if let Some(damage) = &tape.damage {
        tell!("the file is damaged: {damage}");
    }
}

fn show_events(tape: &Tape, until: Option<Duration>, all: bool) {
    let (mut export, mut import) = (0, 0);
    for moment in tape.moments() {
        if until.is_some_and(|until| moment.at > until) {
            break;
        }
        let number = match moment.event.kind {
            Kind::Call => {
                export = moment.event.number;
                export
            }
            Kind::Import => {
                import = moment.event.number;
                import
            }
            Kind::Return => export,
            Kind::Answer => import,
        };
        let line = describe(moment.event, number);
        let is_log = moment.event.kind == Kind::Import && line.starts_with("logging.");
        if all || is_log {
            say!("{}  {}", hours(moment.at), text::visible(text::cut(&line, LINE)));
        }
    }
}

/// Longer events are cut.
const LINE: usize = 1000;

fn tell_of(replay: &Replay) {
    let seconds = replay.took.as_secs_f64();
    let speed = replay.to.as_secs_f64() / seconds.max(1e-6);
    let (calls, to) = (replay.calls, hours(replay.to));
    match &replay.difference {
        None => {
            say!("{calls} calls up to {to} are the same, in {seconds:.3} s, {speed:.0} times as fast");
            match &replay.death {
                Some(death) => say!("the driver {}", death.lines().map(text::visible).collect::<Vec<_>>().join("\n  ")),
                None => say!("{} of memory, {}", bytesize::ByteSize(replay.memory as u64), state(replay)),
            }
        }
        Some(difference) => {
            say!("call {calls} at {} is another one:", hours(difference.at));
            let expected = difference.expected.as_ref().map_or("nothing more".into(), describe_side);
            let side = |text: &str| text::visible(text::cut(text, LINE)).into_owned();
            say!("  on the tape: {}", side(&expected));
            say!("  now:         {}", side(&describe_side(&difference.found)));
        }
    }
}

/// What the driver would hand over to the next version.
fn state(replay: &Replay) -> String {
    match &replay.state {
        None => "no state to hand over".into(),
        Some(state) => match std::str::from_utf8(state) {
            Ok(text) if !text.contains(|c: char| c.is_control() && c != '\n') => {
                format!("state of {} bytes: {}", state.len(), text::visible(text::cut(text, LINE)))
            }
            _ => {
                let digits: String = state.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
                format!("state of {} bytes: {digits}{}", state.len(), if state.len() > 64 { "…" } else { "" })
            }
        },
    }
}

fn as_json(tape: &Tape, replay: &Replay) -> Json {
    let difference = replay.difference.as_ref().map(|difference| {
        json!({
            "at": difference.at.as_secs_f64(),
            "call": difference.calls,
            "on_the_tape": difference.expected.as_ref().map(describe_side),
            "now": describe_side(&difference.found),
        })
    });
    json!({
        "tape": tape.header,
        "damage": tape.damage,
        "calls": replay.calls,
        "to": replay.to.as_secs_f64(),
        "took": replay.took.as_secs_f64(),
        "difference": difference,
        "death": replay.death,
        "memory": replay.memory,
        "state": replay.state,
    })
}
