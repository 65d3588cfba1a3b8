//! `sandgate demo`: a whole gateway on one machine, with nothing else needed.
//!
//! Builds the drivers, starts a stand-in of the cloud and simulated devices,
//! runs a gateway with four children and shows what happens. The gateway is the
//! real one.

mod field;
mod relay;
mod view;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::say::tell;
use crate::standin::{Cloud, Standin};
use sandgate::config::Config;
use sandgate::launch;
use sandgate::logs::{self, Format, LogTap};
use sandgate::message::now;

/// How the demo runs.
#[derive(Debug, Args)]
pub struct Options {
    /// The cloud whose stand-in the gateway speaks to.
    #[arg(long, value_enum, default_value_t = Cloud::Enapter)]
    cloud: Cloud,
    /// End after this many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Print plain lines instead of the live view.
    #[arg(long)]
    plain: bool,
    /// The folder with the sources of the drivers.
    #[arg(long)]
    plugins: Option<PathBuf>,
    /// The folder for the demo's configuration and state.
    #[arg(long, default_value = "sandgate-demo")]
    folder: PathBuf,
    /// Seconds of the simulated day in one second.
    #[arg(long, default_value_t = 120.0)]
    speed: f64,
}

/// The gateway's name in Enapter's cloud.
const HARDWARE: &str = "SDEMO";
/// The drivers that the demo uses.
const DRIVERS: [&str; 3] = ["power-meter-pm2100", "inverter-deye", "relay-tasmota"];

/// Runs the demo until its time is over or someone ends it.
pub async fn run(options: Options) -> Result<()> {
    let plain = options.plain || !std::io::stdout().is_terminal();
    let plugins = plugins(options.plugins.as_deref())?;
    for (number, name) in (1..).zip(DRIVERS) {
        tell!("[{number}/{}] building {name}", DRIVERS.len());
        let folder = plugins.join(name);
        tokio::task::spawn_blocking(move || crate::toolchain::in_place(&folder)).await.context("building")??;
    }
    let since = now();
    let tap = LogTap::default();
    let _logging = logs::start(&tap, if plain { Format::Text } else { Format::None });
    let components = DRIVERS.map(|name| plugins.join(name).join(format!("{name}.wasm")));
    let cloud = Standin::start(options.cloud, HARDWARE, &components).await?;
    let ports = Ports { field: field::start(options.speed).await?, relay: relay::start().await? };
    let path = configure(&options.folder, &plugins, &cloud, &ports)?;
    let config = Config::load(&path)?;
    let program = std::env::current_exe().context("finding this program")?;
    let gateway = launch::start(&path, config, tap.clone())?;
    let control = gateway.control.clone();

    let hints = hints(&program, &options.folder, &plugins, (options.cloud, &cloud));
    let end = async {
        match options.seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    let view = view::show(&control, &tap, &hints, plain, since);
    tokio::select! {
        shown = view => shown?,
        () = cloud.tell_drops() => {}
        () = end => {}
        interrupt = tokio::signal::ctrl_c() => interrupt.context("listening for Ctrl-C")?,
    }
    if !plain {
        ratatui::restore();
    }
    let status = control.status().await;
    control.stop().await;
    gateway.ended().await?;
    if let Some(status) = status {
        view::print_summary(&status, &view::swaps_since(&control, since));
    }
    Ok(())
}

struct Ports {
    field: u16,
    relay: u16,
}

fn plugins(given: Option<&Path>) -> Result<PathBuf> {
    let beside_source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins");
    let candidates = match given {
        Some(given) => vec![given.to_owned()],
        None => vec![PathBuf::from("plugins"), beside_source],
    };
    for folder in &candidates {
        if DRIVERS.iter().all(|name| folder.join(name).is_dir()) {
            return folder.canonicalize().with_context(|| format!("finding {}", folder.display()));
        }
    }
    bail!("no drivers found; run the demo in the source folder, or name its folder with --plugins")
}

/// Writes the gateway's configuration.
fn configure(folder: &Path, plugins: &Path, cloud: &Standin, ports: &Ports) -> Result<PathBuf> {
    let Ports { field, relay } = ports;
    let session = cloud.session();
    let endpoint =
        |device| cloud.token(device).map_or(String::new(), |token| format!("endpoints.local.token = \"{token}\"\n"));
    let driver = |name: &str| toml::Value::from(format!("{0}/{name}/{name}.wasm", plugins.display()));
    let (meter, inverter, tasmota) = (driver(DRIVERS[0]), driver(DRIVERS[1]), driver(DRIVERS[2]));
    let text = format!(
        r#"# Written by `sandgate demo`. Change it while the demo runs: it is applied at once.
state = "state"

[gateway]
telemetry_every = "2s"

{session}
[buses.field.modbus_tcp]
address = "127.0.0.1:{field}"
timeout = "500ms"
gap = "2ms"

[devices.house_meter]
driver = {meter}
configuration.connection.unit = 1
grants.modbus.line = "field"
{0}
[devices.heat_pump_meter]
driver = {meter}
configuration.connection.unit = 2
grants.modbus.line = "field"
{1}
[devices.inverter]
driver = {inverter}
configuration.connection.unit = 3
grants.modbus.line = "field"
{2}
[devices.lamp]
driver = {tasmota}
configuration.connection.url = "http://127.0.0.1:{relay}"
grants.http = ["127.0.0.1:{relay}"]
{3}"#,
        endpoint("house_meter"),
        endpoint("heat_pump_meter"),
        endpoint("inverter"),
        endpoint("lamp"),
    );
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join("gateway.toml");
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// What to try in a second terminal.
fn hints(program: &Path, folder: &Path, plugins: &Path, (kind, cloud): (Cloud, &Standin)) -> Vec<String> {
    let here = std::env::current_dir().unwrap_or_default();
    let shown = |path: &Path| path.strip_prefix(&here).unwrap_or(path).display().to_string();
    let program = shown(program);
    let state = shown(&folder.join("state"));
    let source = shown(&plugins.join(DRIVERS[0]));
    let own = vec![
        format!("export SANDGATE_STATE={state}"),
        format!("{program} devices"),
        format!("{program} command lamp turn_off"),
        format!("{program} command inverter set_max_charge_current amps=60"),
        format!("edit {source}/src/lib.rs and: {program} build {source}"),
        format!("{program} swaps"),
        format!("{program} logs -f"),
    ];
    let (meter, lamp) = (cloud.name_of("house_meter"), cloud.name_of("lamp"));
    let asked = match kind {
        Cloud::Enapter => {
            vec![format!("samples {meter} -f"), format!("send-command {lamp} turn_off"), "devices".into()]
        }
        Cloud::Kaa => vec![
            format!("samples {meter} -f"),
            format!("send-command {lamp} turn_off --await 5"),
            format!(r#"put-config {lamp} '{{"connection": {{"poll_ms": 5000}}}}'"#),
            "endpoints".into(),
        ],
    };
    own.into_iter().chain(asked.iter().map(|what| cloud.ask(&program, what))).collect()
}
