//! Brings a gateway up, for `run`, `demo` and `dev`: state folder, supervisor,
//! admin API.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;

use crate::admin;
use crate::bus::Simulation;
use crate::config::Config;
use crate::logs::LogTap;
use crate::sandbox::Compiler;
use crate::state::StateFolder;
use crate::supervisor::{Control, Supervisor};
use crate::text;

/// A gateway that runs.
pub struct Running {
    /// How to ask it.
    pub control: Control,
    supervisor: JoinHandle<()>,
    admin: JoinHandle<()>,
}

/// Starts a gateway with a configuration file. This program is its compiler.
pub fn start(path: &Path, config: Config, tap: LogTap) -> Result<Running> {
    start_with(path, config, tap, None)
}

/// The same, with simulated devices in the place of its field.
pub fn start_with(
    path: &Path,
    config: Config,
    tap: LogTap,
    simulation: Option<Arc<dyn Simulation>>,
) -> Result<Running> {
    let compiler = Compiler::Child(std::env::current_exe().context("finding this program")?);
    let state = StateFolder::open(&config.state)?;
    let devices = text::count(config.devices.len(), "device");
    let (mut supervisor, control) = Supervisor::open(path, config, state.path(), compiler, tap.secrets.clone())?;
    if let Some(simulation) = simulation {
        supervisor.simulate(simulation);
    }
    tracing::info!("sandgate {} with {devices}, state in {}", env!("CARGO_PKG_VERSION"), state.path().display());
    let admin = tokio::spawn(admin::run(state, control.clone(), tap));
    Ok(Running { control, supervisor: tokio::spawn(supervisor.run()), admin })
}

impl Running {
    /// Waits until it has stopped, after `Control::stop`.
    pub async fn ended(self) -> Result<()> {
        self.supervisor.await.context("stopping")?;
        self.admin.abort();
        Ok(())
    }
}
