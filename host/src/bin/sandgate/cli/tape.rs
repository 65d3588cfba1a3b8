//! `sandgate tape` and `sandgate record`: what the driver of a device has done, as a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use sandgate::clock::hours;
use sandgate::device::Recording;
use sandgate::scenario::scenario_of;
use sandgate::tape::{POST_MORTEMS, Tape, post_mortems};
use serde_json::json;

use super::replay::driver_of;
use super::{Gateway, Outcome, remote};
use crate::say::{say, tell};

/// What to write.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Options {
    #[command(subcommand)]
    conversion: Option<Conversion>,
    /// The device's id.
    #[arg(required = true)]
    device: Option<String>,
    /// The newest tape of a driver that died, which the gateway has kept by itself.
    #[arg(long)]
    post_mortem: bool,
    #[command(flatten)]
    file: File,
    #[command(flatten)]
    gateway: Gateway,
}

/// What a tape can become.
#[derive(Debug, Subcommand)]
enum Conversion {
    /// Print a scenario for `sandgate test` in which the device answers from a tape.
    ToScenario {
        /// The tape; the scenario's file belongs beside it.
        tape: PathBuf,
    },
}

/// What to record.
#[derive(Debug, Args)]
pub(super) struct RecordOptions {
    /// The device's id.
    device: String,
    /// For how long, such as 10m.
    #[arg(long = "for", default_value = "10m", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Swap the driver for itself first, state and all, so that the tape begins with a life and can
    /// be replayed.
    #[arg(long)]
    afresh: bool,
    #[command(flatten)]
    file: File,
    #[command(flatten)]
    gateway: Gateway,
}

/// Where it goes.
#[derive(Debug, Args)]
struct File {
    /// The file; default is the device's name with `.tape`.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Leave the driver out of the file; a replay is given it then.
    #[arg(long)]
    without_driver: bool,
}

/// Fetches a tape.
pub(super) async fn run(options: Options, json: bool) -> Result<Outcome> {
    if let Some(Conversion::ToScenario { tape }) = &options.conversion {
        return to_scenario(tape, json);
    }
    let device = options.device.unwrap_or_default();
    let bytes = match options.post_mortem {
        true => post_mortem(&options.gateway.state, &device)?,
        false => remote::tape(&options.gateway, &device).await?,
    };
    write(&bytes, &device, &options.file, &options.gateway.state, json)
}

/// Prints a scenario made of a tape.
fn to_scenario(path: &Path, json: bool) -> Result<Outcome> {
    let tape = Tape::load(path).map_err(|problem| anyhow!("{}: {problem}", path.display()))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let scenario = scenario_of(&tape, &name);
    match json {
        true => say!("{}", json!({ "scenario": scenario })),
        false => say!("{}", scenario.trim_end()),
    }
    Ok(Outcome::Done)
}

/// Records for a time and fetches the tape.
pub(super) async fn record(options: RecordOptions, json: bool) -> Result<Outcome> {
    let ms = u64::try_from(options.time.as_millis()).unwrap_or(u64::MAX);
    let recording = Recording { ms, afresh: options.afresh };
    remote::record(&options.gateway, &options.device, recording).await?;
    tell!("recording {} for {}", options.device, humantime::format_duration(options.time));
    tokio::time::sleep(options.time + Duration::from_millis(200)).await;
    let bytes = remote::tape(&options.gateway, &options.device).await?;
    write(&bytes, &options.device, &options.file, &options.gateway.state, json)
}

/// The newest one that the gateway has kept, also of one that does not run.
fn post_mortem(state: &Path, device: &str) -> Result<Vec<u8>> {
    if !sandgate::message::is_valid_device_id(device) {
        bail!("{device:?} is no device id");
    }
    let kept = post_mortems(&state.join(POST_MORTEMS).join(device));
    let newest = kept.last().ok_or_else(|| anyhow!("the gateway has kept no post-mortem of {device}"))?;
    std::fs::read(newest).with_context(|| format!("reading {}", newest.display()))
}

fn write(bytes: &[u8], device: &str, file: &File, state: &Path, json: bool) -> Result<Outcome> {
    let mut tape = Tape::read(bytes).map_err(|problem| anyhow!("reading the tape: {problem}"))?;
    if !file.without_driver {
        tape.component = driver_of(&tape, state);
    }
    let path = file.output.clone().unwrap_or_else(|| format!("{device}.tape").into());
    let bytes = tape.to_bytes();
    // For nobody else's eyes.
    sandgate::files::replace(&path, &bytes).with_context(|| format!("writing {}", path.display()))?;
    let (calls, from, to) = tape.extent();
    let has_driver = tape.component.is_some();
    if json {
        let (from, to) = (from.as_secs_f64(), to.as_secs_f64());
        say!(
            "{}",
            json!({
                "file": path, "bytes": bytes.len(), "calls": calls, "from": from, "to": to,
                "whole": tape.header.is_whole, "with_driver": has_driver, "problem": tape.header.problem,
            })
        );
        return Ok(Outcome::Done);
    }
    say!("{}: {calls} calls from {} to {}, {} bytes", path.display(), hours(from), hours(to), bytes.len());
    if let Some(problem) = &tape.header.problem {
        say!("the driver {problem}");
    }
    match tape.header.is_whole {
        true => say!("sandgate replay {}", path.display()),
        false => say!("it lacks the begin of the driver's life, and cannot be replayed; record one with --afresh"),
    }
    if !has_driver && !file.without_driver {
        tell!("the driver's file is not kept any more, and not on the tape");
    }
    Ok(Outcome::Done)
}
