//! What the host keeps for one instance: the data of its Store.
//!
//! Each import has its own part here; the modules beside this one hold one
//! import each and touch only theirs.

use std::sync::Arc;
use tokio::time::Instant;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::alerts::AlertState;
use super::contract::sandgate::driver::budget::Remaining;
use super::limits::{CpuBudget, Limits, MemoryLimit};
use super::log::{DeviceLog, Output};
use super::serial::Turns;
use super::storage::Stored;
use super::telemetry::Telemetry;
use super::timers::Timers;
use super::trap::LastWords;
use super::{Capabilities, Driver, http, wasi_sockets};
use crate::bus::{Simulation, TcpLines};
use crate::config::ConfiguredUnits;
use crate::lines::Granted;
use crate::manifest::files::Files;
use crate::manifest::{Manifest, RequestKind};
use crate::message::{SessionName, Severity};
use crate::network::{Access, Lookups};
use crate::router::Outlet;
use crate::sockets::{Socket, Sockets};
use crate::tape::{Deck, hidden};
use crate::text;

/// Handles that one instance may hold: some for each connection and stream.
pub(super) const MAX_HANDLES: usize = 256;

/// The data of one Store.
pub struct State {
    pub(super) wasi: WasiCtx,
    pub(super) table: ResourceTable,
    pub(super) memory: MemoryLimit,
    pub(super) cpu: CpuBudget,
    /// When the call that runs is cut off.
    pub(super) call_ends: Instant,
    /// What travels in the driver.
    pub(super) files: Arc<Files>,
    pub(super) manifest: Arc<Manifest>,
    pub(super) outlet: Arc<Outlet>,
    pub(super) telemetry: Telemetry,
    pub(super) alerts: AlertState,
    pub(super) log: Arc<DeviceLog>,
    pub(super) last_words: LastWords,
    /// The command that is being handled: its id and the session it came by.
    pub(super) command: Option<(String, Option<SessionName>)>,
    pub(super) timers: Timers,
    pub(super) stored: Stored,
    pub(super) tcp: Arc<Access>,
    /// Connections of all devices.
    pub(super) sockets: Sockets,
    pub(super) lookups: Lookups,
    /// Modbus TCP by address.
    pub(super) tcp_lines: TcpLines,
    /// Simulated devices.
    pub(super) field: Option<Arc<dyn Simulation>>,
    /// Those of this one by WASI sockets.
    pub(super) wasi_sockets: Vec<Socket>,
    pub(super) http: http::Client,
    /// Where what crosses the boundary is kept, or comes from.
    pub(super) deck: Deck,
    /// The Modbus units of the configuration that counts.
    pub(super) units: ConfiguredUnits,
    /// What is granted and asked for.
    pub(super) lines: Arc<Granted>,
    /// Serial ports that it has for itself until the call ends.
    pub(super) turns: Turns,
}

impl State {
    /// The state of a fresh instance.
    pub fn new(driver: &Driver, capabilities: &Capabilities, log: Arc<DeviceLog>, limits: &Limits, deck: Deck) -> Self {
        let (manifest, instances) = (&driver.manifest, driver.inspection.max_instances);
        let requests = &manifest.driver.requests;
        let tcp = Arc::new(Access { requested: requests.tcp.clone(), granted: capabilities.tcp.clone() });
        let http = Access { requested: requests.http.clone(), granted: capabilities.http.clone() };
        let last_words = LastWords::default();
        let mut wasi = WasiCtxBuilder::new();
        wasi.stdout(Output::new(Arc::clone(&log), Severity::Info, None))
            .stderr(Output::new(Arc::clone(&log), Severity::Warning, Some(last_words.clone())))
            .max_random_size(64 << 10)
            .allow_ip_name_lookup(false)
            .allow_udp(false)
            .allow_tcp(!tcp.granted.is_empty() && capabilities.surroundings.field.is_none())
            .socket_addr_check({
                let tcp = Arc::clone(&tcp);
                move |address, usage| {
                    let allowed = wasi_sockets::allows(&tcp, address, usage);
                    Box::pin(async move { allowed })
                }
            });
        capabilities.surroundings.lay_around(&mut wasi);
        let wasi = wasi.build();
        // Sockets and streams are open files of the gateway.
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        State {
            wasi,
            table,
            memory: MemoryLimit::new(limits.memory, instances),
            cpu: CpuBudget::new(limits.cpu),
            call_ends: Instant::now() + limits.call,
            files: Arc::clone(&driver.files),
            manifest: Arc::clone(manifest),
            outlet: Arc::clone(&capabilities.outlet),
            telemetry: Telemetry::new(limits.telemetry, Instant::now(), Arc::clone(&capabilities.statistics)),
            alerts: AlertState::new(!manifest.blueprint.alerts.is_empty()),
            log,
            last_words,
            command: None,
            timers: Timers::default(),
            stored: Stored::new(capabilities.storage.clone(), limits.storage, Instant::now()),
            tcp,
            sockets: capabilities.sockets.clone(),
            lookups: capabilities.lookups.of_one(),
            tcp_lines: capabilities.tcp_lines.clone(),
            field: capabilities.surroundings.field.clone(),
            wasi_sockets: Vec::new(),
            http: http::Client::new(http, &capabilities.unverified_tls, capabilities.sockets.clone()),
            deck,
            units: ConfiguredUnits::default(),
            lines: Arc::new(capabilities.lines.requested(requests)),
            turns: Turns::new(),
        }
    }
}

impl State {
    /// A configuration counts from now on; gives the units of the one before, and
    /// the configuration as it may be on a tape.
    pub(super) fn configured(&mut self, configuration: &str) -> (ConfiguredUnits, String) {
        let shown = self.show(configuration);
        if self.lines.modbus.is_empty() {
            return (ConfiguredUnits::default(), shown);
        }
        (std::mem::replace(&mut self.units, ConfiguredUnits::of(&self.manifest, configuration)), shown)
    }

    /// Says that there is no such line for this driver, and why.
    pub(super) fn no_line(&mut self, kind: RequestKind, name: &str) -> String {
        let is_requested = self.manifest.driver.requests.covers(kind, name);
        let why = match is_requested {
            true => "is not granted to this device",
            false => "is not requested by the driver's manifest",
        };
        let text = format!("{} {:?} {why}", kind.noun(), text::shortened(name, 100));
        self.complain(&text, &text);
        text
    }

    pub(super) fn budget_left(&mut self) -> Remaining {
        let call = self.call_ends.saturating_duration_since(Instant::now());
        let [call, cpu] = [call, self.cpu.left()].map(|left| left.as_secs_f64() * 1000.0);
        Remaining { call, cpu }
    }

    /// Tells the tape of a configuration; gives what may be on it.
    pub(super) fn show(&mut self, configuration: &str) -> String {
        if matches!(self.deck, Deck::Off) {
            return String::new();
        }
        let mut values = serde_json::from_str(configuration).unwrap_or_default();
        let secrets = self.manifest.sensitive(&values);
        self.manifest.hide_sensitive(&mut values, hidden);
        let shown = serde_json::Value::Object(values).to_string();
        self.deck.configured(&shown, &secrets);
        shown
    }

    /// Closes all connections; the driver finds them closed.
    pub(super) fn close_connections(&mut self) {
        super::net::close_all(&mut self.table);
        super::modbus::close_all(&mut self.table);
        self.turns.clear();
        self.close_wasi_sockets();
        self.http.close();
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}
