//! What all measurements need: guests, drivers, devices, medians.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sandgate::cloud::Cloud;
use sandgate::cloud::enapter::Enapter;
use sandgate::config::{Broker, Credentials, Limits, LogLevel, PropertiesTopic, Rate, Span};
use sandgate::device::{Configuration, DeviceHandle, News, Specification, prepare};
use sandgate::journal::Journal;
use sandgate::lines::Granted;
use sandgate::message::{DeviceId, SessionName};
use sandgate::outbox::{Bounds, Outbox};
use sandgate::receipt::Receipts;
use sandgate::router::{Outlet, Route};
use sandgate::sandbox::{Capabilities, Compiler, Driver, Sandbox, Surroundings, embed_manifest};
use sandgate::session::{Dialogue, Parts};
use sandgate::tape::{Room, Tapes};
use serde_json::json;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A guest of tests/fixtures with a version of one's own.
pub fn guest(name: &str, version: &str) -> Vec<u8> {
    let status = Command::new("cargo")
        .current_dir(root())
        .args([
            "build",
            "-q",
            "--profile",
            "driver",
            "--target",
            "wasm32-wasip2",
            "-p",
            "sandgate-fixtures",
            "--examples",
        ])
        .status()
        .unwrap();
    assert!(status.success());
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from);
    let component = std::fs::read(target.join(format!("wasm32-wasip2/driver/examples/{name}.wasm"))).unwrap();
    let manifest = std::fs::read_to_string(root().join("tests/fixtures").join(name).join("manifest.yml")).unwrap();
    embed_manifest(&component, &manifest.replace("version: 1.0.0", &format!("version: {version}"))).unwrap()
}

pub async fn driver(sandbox: &Sandbox, name: &str, version: &str) -> Arc<Driver> {
    Arc::new(sandbox.prepare(guest(name, version).into()).await.unwrap())
}

pub fn sandbox() -> Sandbox {
    Sandbox::new(Compiler::InProcess, None).unwrap()
}

pub fn cloud() -> Enapter {
    Enapter {
        hardware_id: "S01".into(),
        channel_id: "s".into(),
        properties_topic: PropertiesTopic::Properties,
        needs_ucm: false,
    }
}

/// A session's parts, to a broker of this machine.
pub fn parts(port: u16, outbox: &Arc<Outbox>, cloud: Arc<dyn Cloud>, dialogue: Box<dyn Dialogue>) -> Parts {
    Parts {
        cloud,
        dialogue,
        broker: Broker { host: "127.0.0.1".into(), port, credentials: Credentials::None, tls: None },
        outbox: Arc::clone(outbox),
        sync_every: Duration::from_millis(50),
        identity: String::new(),
        client_id: "bench".into(),
        qos: 1,
        keep_alive: Duration::from_secs(60),
        resumes: false,
        answers: false,
        binary_data: None,
        max_software: 0,
    }
}

pub fn outbox(bytes: usize) -> Arc<Outbox> {
    Arc::new(Outbox::new(Bounds { bytes, age: Duration::from_secs(3600), ..Bounds::default() }))
}

pub fn specification(id: &str, outbox: &Arc<Outbox>) -> Arc<Specification> {
    let device = DeviceId::new(id);
    let route = enapter_route(&device, outbox);
    specification_with(Outlet { device, routes: vec![route] })
}

/// The same for a device with a tape.
pub fn recorded_specification(id: &str, outbox: &Arc<Outbox>) -> Arc<Specification> {
    let device = DeviceId::new(id);
    let route = enapter_route(&device, outbox);
    let tapes = Tapes::new(Room::new(1 << 20, Duration::from_secs(3600)), true, None);
    bench_specification(Outlet { device, routes: vec![route] }, Some(tapes))
}

fn enapter_route(device: &DeviceId, outbox: &Arc<Outbox>) -> Route {
    let channel = cloud().device(device, None).unwrap();
    Route {
        session: SessionName::new("bench"),
        channel,
        outbox: Arc::clone(outbox),
        questions: None,
        binary_data: None,
    }
}

pub fn specification_with(outlet: Outlet) -> Arc<Specification> {
    bench_specification(outlet, None)
}

fn bench_specification(outlet: Outlet, tapes: Option<Tapes>) -> Arc<Specification> {
    let rate = Some(Rate { per_second: 1e9, burst: 1e9 });
    Arc::new(Specification {
        id: outlet.device.clone(),
        capabilities: Capabilities {
            outlet: Arc::new(outlet),
            statistics: Arc::default(),
            storage: None,
            tcp: Vec::new(),
            http: Vec::new(),
            unverified_tls: Vec::new(),
            lines: Granted::default(),
            sockets: sandgate::sockets::Sockets::new(1000),
            lookups: sandgate::network::Lookups::new(),
            tcp_lines: sandgate::bus::TcpLines::default(),
            tapes,
            surroundings: Surroundings::default(),
        },
        limits: Limits { telemetry: rate, logs: rate, cpu: Some(Span(Duration::from_secs(60))), ..Limits::default() },
        cloud_log: LogLevel::Off,
        health_window: Duration::from_millis(1),
        news: News::default(),
    })
}

pub async fn start(spec: &Arc<Specification>, driver: &Arc<Driver>, configuration: serde_json::Value) -> DeviceHandle {
    start_with(spec, driver, configuration, Arc::new(Journal::in_memory(Duration::from_secs(60)))).await
}

/// The same with a journal.
pub async fn start_with(
    spec: &Arc<Specification>,
    driver: &Arc<Driver>,
    configuration: serde_json::Value,
    journal: Arc<Journal>,
) -> DeviceHandle {
    let given = Configuration::own(json!({ "main": configuration }).as_object().unwrap().clone());
    let prepared = prepare(spec, Arc::clone(driver), &given).await.unwrap();
    DeviceHandle::start(Arc::clone(spec), prepared, journal, Receipts::in_memory())
}

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

pub fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
}

pub fn micros(time: Duration) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6)
}
