//! `sandgate shadow`: a new version on what a device does from now on.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use sandgate::device::Recording;
use sandgate::sandbox::{Compiler, Sandbox};
use sandgate::tape::Tape;

use super::replay::{compare, driver_of};
use super::{Gateway, Outcome, remote};
use crate::say::tell;
use crate::toolchain;

/// What to try, and on whom.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The device's id.
    device: String,
    /// The new component.
    driver: PathBuf,
    /// For how long, such as 10m.
    #[arg(long = "for", default_value = "10m", value_parser = humantime::parse_duration)]
    time: Duration,
    #[command(flatten)]
    gateway: Gateway,
}

fn read(bytes: &[u8]) -> Result<Tape> {
    Tape::read(bytes).map_err(|problem| anyhow!("reading the tape: {problem}"))
}

/// Records for a time, and runs both versions on that. The gateway and the device
/// do not notice the new one.
pub(super) async fn run(options: Options, json: bool) -> Result<Outcome> {
    let Options { device, driver, time, gateway } = options;
    let sandbox = Sandbox::new(Compiler::InProcess, toolchain::cache().as_deref())?;
    // What is no driver is told before the time has passed.
    let new = sandbox.load(&driver).await?;
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let before = read(&remote::tape(&gateway, &device).await?)?.header;
    remote::record(&gateway, &device, Recording { ms, afresh: false }).await?;
    tell!("looking at {device} for {}", humantime::format_duration(time));
    tokio::time::sleep(time).await;
    let tape = read(&remote::tape(&gateway, &device).await?)?;
    if (&tape.header.driver, tape.header.began) != (&before.driver, before.began) {
        bail!("the driver of {device} was swapped or started anew meanwhile; try again");
    }
    let old = driver_of(&tape, &gateway.state).context("the gateway has no copy of the driver that runs")?;
    let old = sandbox.prepare(old.into()).await.context("the driver that runs")?;
    compare((old, new), tape, json).await
}
