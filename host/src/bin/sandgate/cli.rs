//! The command line: its types and the way to each command.

mod blueprint;
mod build;
mod check;
mod cloud;
mod devices;
mod new;
mod outbox;
mod preflight;
mod remote;
mod replay;
mod run;
mod service;
mod shadow;
mod tape;
mod test;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory, Parser, Subcommand};

/// Runs device drivers in sandboxes and connects them to IoT clouds.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
// `sandgate command` is the word; the value is made once.
#[allow(clippy::enum_variant_names, clippy::large_enum_variant)]
enum Command {
    /// Run a gateway.
    Run {
        /// The configuration file.
        config: PathBuf,
        /// Check the configuration and the drivers it names, and end.
        #[arg(long)]
        check: bool,
    },
    /// Show a whole gateway with simulated devices and a local broker.
    Demo(crate::demo::Options),
    /// Work on a driver: build, run, swap and test it at each save, with simulated devices.
    Dev(crate::dev::Options),
    /// Write the skeleton of a driver.
    New {
        /// The folder to create; its name becomes the driver's.
        path: PathBuf,
        /// The language.
        #[arg(long, value_enum, default_value_t = new::Language::Rust)]
        lang: new::Language,
    },
    /// Build a driver and embed its manifest.
    Build(build::Options),
    /// Check a driver and show what it is and wants, or how good it is.
    Check(check::Options),
    /// Run a driver's scenarios, with simulated devices and a clock that jumps.
    Test(test::Options),
    /// Run a driver again on a tape, and find the first thing that it does otherwise.
    Replay(replay::Options),
    /// Write the blueprint for upload to the cloud.
    Blueprint {
        /// The component; or, with --parent, the gateway's configuration file.
        file: PathBuf,
        /// Write the gateway's own blueprint, which names its children's.
        #[arg(long)]
        parent: bool,
        /// Where to write it; default is standard output.
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// List the devices of a running gateway.
    Devices(Gateway),
    /// Show what waits for the clouds, and how it is kept.
    Outbox(Gateway),
    /// Swap the driver of a device, or in steps that of all devices of one driver.
    #[command(
        override_usage = "sandgate swap DEVICE [FILE] [--accept-diff]\n       sandgate swap --driver NAME [--steps 1,10%,100%] [--watch 5m] [FILE]"
    )]
    Swap {
        /// The device's id; with --driver the new component.
        #[arg(required_unless_present = "driver")]
        device: Option<String>,
        /// The new component; default is the device's configured file.
        #[arg(conflicts_with = "driver")]
        file: Option<PathBuf>,
        /// Take it although it does something else than the old one on what the device has done lately.
        #[arg(long, conflicts_with = "driver")]
        accept_diff: bool,
        /// All devices that run a driver of this name.
        #[arg(long)]
        driver: Option<String>,
        /// How many of them have the new one after each step.
        #[arg(long, requires = "driver", value_delimiter = ',', default_value = "1,10%,100%")]
        steps: Vec<String>,
        /// How long they must do well before the next step; else all go back.
        #[arg(long, requires = "driver", default_value = "5m")]
        watch: String,
        #[command(flatten)]
        gateway: Gateway,
    },
    /// Go back to the driver before the last swap, or to a kept version.
    Rollback {
        /// The device's id.
        device: String,
        /// The version, or the first digits of the driver's digest.
        version: Option<String>,
        #[command(flatten)]
        gateway: Gateway,
    },
    /// Write what the driver of a device has done to a file: what crossed between it and the host.
    Tape(tape::Options),
    /// Keep all that the driver of a device does for a time, and write it to a file.
    Record(tape::RecordOptions),
    /// Run a new version on what a device does from now on, beside the one that runs, and say what
    /// it does otherwise. Nothing of it reaches the device or the cloud.
    Shadow(shadow::Options),
    /// Show the receipts of swaps.
    Swaps {
        /// Of this device only.
        device: Option<String>,
        #[command(flatten)]
        gateway: Gateway,
    },
    /// Start a device afresh.
    Restart {
        /// The device's id.
        device: String,
        #[command(flatten)]
        gateway: Gateway,
    },
    /// Show the log.
    Logs {
        /// Of this device only.
        device: Option<String>,
        /// Go on with new lines.
        #[arg(long, short)]
        follow: bool,
        #[command(flatten)]
        gateway: Gateway,
    },
    /// Run a command on a device.
    Command {
        /// The device's id.
        device: String,
        /// The command's name.
        name: String,
        /// Arguments as key=value; values that are no JSON are texts.
        #[arg(value_parser = remote::argument)]
        arguments: Vec<remote::Argument>,
        #[command(flatten)]
        gateway: Gateway,
    },
    /// Run a local stand-in for a cloud, or ask one.
    #[command(subcommand)]
    Cloud(cloud::Cloud),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Compile a component; the gateway starts this by itself.
    #[command(hide = true)]
    CompileWorker,
    /// Compare two drivers on a tape; the gateway starts this by itself.
    #[command(hide = true)]
    GateWorker,
}

/// Which running gateway is meant.
#[derive(Debug, Args)]
struct Gateway {
    /// The state folder of the running gateway.
    #[arg(long, env = "SANDGATE_STATE", default_value = "sandgate-state")]
    state: PathBuf,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1; what failed has been printed.
    Failed,
}

impl Cli {
    /// Carries out the command and prints what it says, also an error.
    pub async fn run(self) -> Outcome {
        let json = self.json;
        self.carry_out().await.unwrap_or_else(|error| {
            match json {
                true => crate::say::say!("{}", serde_json::json!({ "error": format!("{error:#}") })),
                // What others wrote into it does not begin a line.
                false => crate::say::tell!("error: {}", format!("{error:#}").replace('\n', "\n  ")),
            }
            Outcome::Failed
        })
    }

    async fn carry_out(self) -> Result<Outcome> {
        let json = self.json;
        match self.command {
            Command::Run { config, check } => run::run(&config, check, json).await,
            Command::Demo(options) => crate::demo::run(options).await.map(|()| Outcome::Done),
            Command::Dev(options) => crate::dev::run(options).await.map(|()| Outcome::Done),
            Command::New { path, lang } => new::run(&path, lang, json),
            Command::Build(options) => build::run(&options, json).await,
            Command::Check(options) => check::run(&options, json).await,
            Command::Test(options) => test::run(options, json).await,
            Command::Replay(options) => replay::run(options, json).await,
            Command::Tape(options) => tape::run(options, json).await,
            Command::Record(options) => tape::record(options, json).await,
            Command::Shadow(options) => shadow::run(options, json).await,
            Command::Blueprint { file, parent, output } => blueprint::run(&file, parent, output.as_deref(), json).await,
            Command::Devices(gateway) => remote::devices(&gateway, json).await,
            Command::Outbox(gateway) => remote::outbox(&gateway, json).await,
            Command::Swap { driver: Some(driver), device, steps, watch, gateway, .. } => {
                let file = device.map(PathBuf::from);
                remote::roll_out(&gateway, (&driver, file), &steps, &watch, json).await
            }
            Command::Swap { device, file, accept_diff, gateway, .. } => {
                remote::swap(&gateway, &device.unwrap_or_default(), (file, accept_diff), json).await
            }
            Command::Rollback { device, version, gateway } => remote::roll_back(&gateway, &device, version, json).await,
            Command::Swaps { device, gateway } => remote::swaps(&gateway, device.as_deref(), json).await,
            Command::Restart { device, gateway } => remote::restart(&gateway, &device, json).await,
            Command::Logs { device, follow, gateway } => remote::logs(&gateway, device, follow, json).await,
            Command::Command { device, name, arguments, gateway } => {
                remote::command(&gateway, &device, &name, arguments, json).await
            }
            Command::Cloud(cloud) => cloud::run(cloud, json).await,
            Command::Completions { shell } => {
                // Into memory first: the generator panics when nobody reads on.
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "sandgate", &mut script);
                crate::say::say!("{}", String::from_utf8_lossy(&script).trim_end());
                Ok(Outcome::Done)
            }
            Command::CompileWorker => sandgate::sandbox::compile_worker().map(|()| Outcome::Done),
            Command::GateWorker => {
                // Runtimes of its own begin there.
                let work = tokio::task::spawn_blocking(sandgate::gate::gate_worker);
                work.await.context("a bug in the gate")?.map(|()| Outcome::Done)
            }
        }
    }
}
