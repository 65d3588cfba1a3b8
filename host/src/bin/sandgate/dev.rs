//! `sandgate dev`: a driver at work while it is written.
//!
//! Builds the driver of a folder, runs a gateway with it, with a stand-in of the
//! cloud and with the devices that its scenarios give, and shows what happens.
//! Each save is built, swapped in and tested. The gateway is the real one; only
//! the devices are simulated.

mod keys;
mod screen;
mod told;
mod work;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use sandgate::config::Config;
use sandgate::launch;
use sandgate::logs::{self, Format, LogTap};
use sandgate::manifest::Manifest;
use sandgate::message::{Time, now};
use sandgate::sandbox::{Digest, inspect};
use sandgate::scenario::{Deed, Playground, Wanted};
use sandgate::state::StateFolder;
use sandgate::supervisor::Control;
use sandgate::tape::Tape;
use sandgate::text;
use serde_json::{Map, Value as Json, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::say::tell;
use crate::source::{Source, scenario_files};
use crate::standin::{Cloud, Standin};
use keys::{Input, Keys};
use screen::Screen;
use told::Told;
use work::News;

/// What to work on.
#[derive(Debug, Args)]
pub struct Options {
    /// The driver's folder, or a component.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Take the devices that this scenario gives, and not those of the first file.
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Let the devices answer from a tape.
    #[arg(long, value_name = "FILE", conflicts_with = "scenario")]
    tape: Option<PathBuf>,
    /// The cloud whose stand-in the gateway speaks to.
    #[arg(long, value_enum, default_value_t = Cloud::Enapter)]
    cloud: Cloud,
    /// Print lines and take steps from lines, instead of the view with its keys.
    #[arg(long)]
    plain: bool,
    /// Where the scenarios are; default is `tests` beside the driver.
    #[arg(long)]
    tests: Option<PathBuf>,
}

/// The gateway's name in Enapter's cloud.
const HARDWARE: &str = "SDEV";
/// Where the gateway's files are, in the driver's folder.
const FOLDER: &str = ".sandgate-dev";
const REFRESH: Duration = Duration::from_millis(250);
const PLAIN_REFRESH: Duration = Duration::from_secs(5);

/// Works on a driver until it is told to end.
pub async fn run(options: Options) -> Result<()> {
    let plain = options.plain || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal();
    let source = Source::new(&options.path, options.tests.as_deref());
    if source.is_built() {
        tell!("building the driver");
    }
    let (source, component) = tokio::task::spawn_blocking(move || {
        let component = source.component()?;
        Ok::<_, anyhow::Error>((source, std::path::absolute(component)?))
    })
    .await
    .context("building")??;
    let since = now();
    let tap = LogTap::default();
    let _logging = logs::start(&tap, if plain { Format::Text } else { Format::None });
    let cloud = Standin::start(options.cloud, HARDWARE, std::slice::from_ref(&component)).await?;
    let mut bench = Bench::set_up(&options, source, component, cloud)?;
    let config = Config::load(&bench.config)?;
    let gateway = launch::start_with(&bench.config, config, tap.clone(), Some(bench.playground.simulation()))?;
    let control = gateway.control.clone();
    let ended = bench.go(&control, &tap, plain, since).await;
    if !plain {
        ratatui::restore();
    }
    control.stop().await;
    gateway.ended().await?;
    ended
}

/// What is worked with.
struct Bench {
    /// The scenario whose devices are taken; else those of the first file.
    scenario: Option<String>,
    source: Arc<Source>,
    component: PathBuf,
    /// The gateway's configuration.
    config: PathBuf,
    /// The device's id.
    device: String,
    manifest: Manifest,
    playground: Playground,
    /// Whether the devices answer from a tape.
    is_taped: bool,
    cloud: Arc<Standin>,
    /// What is shown.
    told: Told,
}

impl Bench {
    fn set_up(options: &Options, source: Source, component: PathBuf, cloud: Standin) -> Result<Bench> {
        let manifest = manifest_of(&component)?;
        let folder = source.folder().join(FOLDER);
        let state = folder.join("state");
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        // Git asks each folder what to leave out.
        std::fs::write(folder.join(".gitignore"), "*\n").with_context(|| format!("writing to {}", folder.display()))?;
        if state.exists() {
            // Nobody else may be using it; each time all begins afresh.
            drop(StateFolder::open(&state).context("is `sandgate dev` running here already?")?);
            std::fs::remove_dir_all(&state).with_context(|| format!("removing {}", state.display()))?;
        }
        let mut bench = Bench {
            scenario: options.scenario.clone(),
            source: Arc::new(source),
            config: std::path::absolute(folder.join("gateway.toml"))?,
            device: manifest.child_type(),
            playground: Playground::empty(&manifest),
            is_taped: options.tape.is_some(),
            component,
            manifest,
            cloud: Arc::new(cloud),
            told: Told::default(),
        };
        match &options.tape {
            Some(path) => {
                let tape = Tape::load(path).map_err(|problem| anyhow::anyhow!("{}: {problem}", path.display()))?;
                bench.playground.give_tape(tape, &bench.manifest);
            }
            // What is wrong with it can be mended while the driver runs.
            None => bench.give().unwrap_or_else(|error| bench.told.tell(&format!("error: {error:#}"))),
        }
        bench.configure()?;
        Ok(bench)
    }

    /// Takes the devices from the scenarios.
    fn give(&mut self) -> Result<()> {
        let files = match scenario_files(&self.source.tests) {
            Ok(files) => files,
            Err(_) if self.scenario.is_none() => return Ok(()),
            Err(error) => return Err(error),
        };
        let wanted = match &self.scenario {
            Some(name) => Wanted::Called(name),
            None => Wanted::First,
        };
        self.playground.give(&files, wanted, &self.manifest).map_err(anyhow::Error::msg)
    }

    /// Writes the gateway's configuration, when it is another one. The gateway
    /// looks at the file by itself.
    fn configure(&self) -> Result<()> {
        let mut text = format!(
            "# Written by `sandgate dev`; what is changed here is written over.\nstate = \"state\"\n\n\
             [gateway]\ntelemetry_every = \"10s\"\n\n{}",
            self.cloud.session()
        );
        let mut device = self.playground.settings();
        device.insert("driver".into(), json!(self.copy()?));
        device.insert("cloud_log".into(), json!("debug"));
        text.push_str(&format!("\n{}", toml_of(&json!({"buses": self.playground.buses()}))?));
        if let Some(token) = self.cloud.token(&self.device) {
            device.insert("endpoints".into(), json!({"local": {"token": token}}));
        }
        text.push_str(&toml_of(&json!({"devices": {self.device.as_str(): device}}))?);
        if std::fs::read_to_string(&self.config).is_ok_and(|old| old == text) {
            return Ok(());
        }
        crate::toolchain::write(&self.config, text.as_bytes())
    }

    /// Goes on until someone ends it.
    async fn go(&mut self, control: &Control, tap: &LogTap, plain: bool, since: Time) -> Result<()> {
        let mut screen = if plain { None } else { Some(Screen::open()?) };
        self.told.plain = plain;
        self.introduce();
        let mut keys = if plain { Keys::lines() } else { Keys::pressed() };
        let (news, mut works) = mpsc::channel(4);
        let (again, wanted) = mpsc::channel(1);
        let mut worker = tokio::spawn(work::run(Arc::clone(&self.source), self.component.clone(), news, wanted));
        let (done, mut deeds) = mpsc::channel::<String>(16);
        let (newest, mut log) = tap.listen();
        self.told.log = newest.into();
        let mut refresh = tokio::time::interval(if plain { PLAIN_REFRESH } else { REFRESH });
        let mut status = None;
        let cloud = Arc::clone(&self.cloud);
        let mut drops = pin!(cloud.tell_drops());
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut hang_up = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
        loop {
            tokio::select! {
                _ = refresh.tick() => {
                    status = control.status().await;
                    match plain {
                        // The log has told the swaps.
                        true => self.told.values(status.as_ref()),
                        false => self.told.receipts(control, since),
                    }
                }
                Some(input) = keys.next() => match input {
                    Input::End => break,
                    Input::Step(text) => self.play(&text, control, &done),
                    Input::Key(key) => {
                        let Some(screen) = &mut screen else { continue };
                        match screen.press(key, &self.playground) {
                            screen::Wish::Nothing => {}
                            screen::Wish::Play(text) => self.play(&text, control, &done),
                            // One that waits is enough.
                            screen::Wish::Test => drop(again.try_send(())),
                            screen::Wish::End => break,
                        }
                    }
                },
                Some(told) = works.recv() => self.note(told),
                ended = &mut worker => ended.context("a bug in the builder")??,
                Some(text) = deeds.recv() => self.told.tell(&text),
                line = log.recv() => {
                    if let Ok(line) = line {
                        self.told.logged(line);
                    }
                    // There may be many: they are drawn with the next look at the gateway.
                    continue;
                }
                () = &mut drops => {}
                _ = terminate.recv() => break,
                _ = hang_up.recv() => break,
                interrupt = tokio::signal::ctrl_c() => {
                    interrupt.context("listening for Ctrl-C")?;
                    break;
                }
            }
            if let Some(screen) = &mut screen {
                screen.draw(&screen::Picture {
                    manifest: &self.manifest,
                    playground: &self.playground,
                    status: status.as_ref(),
                    told: &self.told,
                })?;
            }
        }
        worker.abort();
        Ok(())
    }

    fn introduce(&mut self) {
        let here = std::env::current_dir().unwrap_or_default();
        let shown = |path: &Path| path.strip_prefix(&here).unwrap_or(path).display().to_string();
        let state = shown(&self.config.with_file_name("state"));
        self.told.tell(&format!("{} runs as device {}", self.manifest.label(), self.device));
        let devices = self.playground.devices();
        let requests = self.manifest.driver.requests.list();
        match devices.is_empty() {
            true if requests.iter().all(|kind| kind.items.is_empty()) => {}
            true => self.told.tell("no devices are given: write what there is into tests/begin.test.yml"),
            false => {
                let names = text::list(devices.iter().map(|device| device.name.clone()));
                self.told.tell(&format!("simulated devices: {names}"));
            }
        }
        self.told.tell(&format!("to ask the gateway in a second terminal: export SANDGATE_STATE={state}"));
        let samples = self.cloud.ask("sandgate", &format!("samples {} -f", self.cloud.name_of(&self.device)));
        self.told.tell(&format!("to ask the cloud: {samples}"));
        if self.told.plain {
            self.told.tell(
                "steps are typed as in scenarios, such as `break: { DEVICE: timeout }`, `repair: DEVICE`, \
                 `command: { name: NAME }`; `quit` ends",
            );
        }
    }

    /// Goes on with what a save has led to.
    fn note(&mut self, news: News) {
        match news {
            News::Building => {
                self.told.is_building = true;
                self.told.tell("building");
            }
            News::NotBuilt(said) => {
                self.told.is_building = false;
                self.told.tell(&format!("NOT BUILT\n{said}"));
            }
            News::Built(took, component) => {
                self.told.is_building = false;
                self.told.tell(&format!("built in {:.1} s", took.as_secs_f64()));
                if let Err(error) = self.take_over(&component) {
                    self.told.tell(&format!("error: {error:#}"));
                }
            }
            News::Tested(tested) => {
                self.told.tests(&tested);
                // Scenarios may give other devices now.
                let component = self.component.clone();
                if let Err(error) = self.take_over(&component) {
                    self.told.tell(&format!("error: {error:#}"));
                }
                self.told.tested = Some(tested);
            }
        }
    }

    /// Lets the devices, the cloud and the configuration follow what the driver and its scenarios say now.
    fn take_over(&mut self, component: &Path) -> Result<()> {
        let manifest = manifest_of(component)?;
        if manifest.child_type() != self.device {
            bail!("the driver is called {} now; start `sandgate dev` again", manifest.driver.name);
        }
        self.component = component.to_owned();
        self.playground.know(&manifest);
        self.manifest = manifest;
        self.cloud.know(std::slice::from_ref(&self.component))?;
        let given = if self.is_taped { Ok(()) } else { self.give() };
        // Without other devices the new version runs all the same.
        self.configure().and(given)
    }

    /// A copy of the component under a name of its own, so that a new version and its
    /// configuration reach the gateway together.
    fn copy(&self) -> Result<PathBuf> {
        let bytes = std::fs::read(&self.component).with_context(|| self.component.display().to_string())?;
        let folder = self.config.with_file_name("drivers");
        let copy = folder.join(format!("{}.wasm", Digest::of(&bytes)));
        if !copy.exists() {
            // The gateway has read those before, and keeps them by itself.
            let _ = std::fs::remove_dir_all(&folder);
            crate::toolchain::write(&copy, &bytes)?;
        }
        Ok(copy)
    }

    /// Does what was typed or chosen.
    fn play(&mut self, text: &str, control: &Control, done: &mpsc::Sender<String>) {
        self.told.tell(&format!("> {text}"));
        let deeds = match self.playground.play(text) {
            Ok(deeds) => deeds,
            Err(problem) => return self.told.tell(&format!("error: {problem}")),
        };
        for deed in deeds {
            if deed == Deed::Configure {
                let configured = self.configure();
                configured.unwrap_or_else(|error| self.told.tell(&format!("error: {error:#}")));
                continue;
            }
            let (control, device, done) = (control.clone(), self.device.clone(), done.clone());
            tokio::spawn(async move {
                let text = carry_out(deed, &control, &device).await;
                // It may be over by now.
                let _ = done.send(text).await;
            });
        }
    }
}

/// Lets the gateway do something, and says how it went.
async fn carry_out(deed: Deed, control: &Control, device: &str) -> String {
    let told = match deed {
        Deed::Configure => Ok(String::new()),
        Deed::Restart => control.restart(device).await.map(|()| "started afresh".to_owned()),
        Deed::Swap(file) => control.swap(device, file, "dev", true).await.map(|_| "swapped".to_owned()),
        Deed::Command { name, arguments } => {
            control.command(device, &name, arguments).await.map(|result| match result {
                Ok(values) => {
                    let values = values
                        .iter()
                        .map(|value| format!("{}={}", value.name, sandgate::manifest::value::json_of(&value.value)));
                    format!("{name}: done {}", values.collect::<Vec<_>>().join(" "))
                }
                Err(error) => format!("{name}: {error}"),
            })
        }
    };
    told.unwrap_or_else(|error| format!("error: {error}"))
}

fn manifest_of(component: &Path) -> Result<Manifest> {
    let place = || component.display().to_string();
    let bytes = std::fs::read(component).with_context(place)?;
    inspect(&bytes).and_then(|driver| driver.manifest()).with_context(place)
}

/// A value as TOML, without what is nothing.
fn toml_of(value: &Json) -> Result<String> {
    toml::to_string(&without_nothing(value.clone())).context("writing the gateway's configuration")
}

fn without_nothing(value: Json) -> Json {
    match value {
        Json::Object(table) => {
            let some = table.into_iter().filter(|(_, value)| !value.is_null());
            some.map(|(name, value)| (name, without_nothing(value))).collect::<Map<_, _>>().into()
        }
        other => other,
    }
}
