//! What takes a device minutes, in milliseconds: the device's own task and a
//! driver, on a clock that jumps to the next thing that is due.

use std::sync::Arc;
use std::time::Duration;

use sandgate::bus::TcpLines;
use sandgate::config::{Config, Limits, LogLevel};
use sandgate::device::{Configuration, DeviceHandle, Input, News, Phase, Specification, prepare};
use sandgate::journal::Journal;
use sandgate::lines::Granted;
use sandgate::message::DeviceId;
use sandgate::network::Lookups;
use sandgate::receipt::{Outcome, Receipt, Receipts};
use sandgate::router::Outlet;
use sandgate::sandbox::{Capabilities, Compiler, Sandbox, Surroundings};
use sandgate::secrets::Secrets;
use sandgate::sockets::Sockets;
use sandgate::supervisor::Supervisor;
use serde_json::json;
use tokio::time::Instant;

use crate::harness::{fixture, fixture_with};

async fn device(driver: &str, configuration: serde_json::Value) -> DeviceHandle {
    device_with(driver, configuration, Receipts::in_memory()).await
}

async fn device_with(driver: &str, configuration: serde_json::Value, receipts: Receipts) -> DeviceHandle {
    let sandbox = Sandbox::new(Compiler::InProcess, None).unwrap();
    let driver = Arc::new(sandbox.prepare(fixture(driver).into()).await.unwrap());
    let id = DeviceId::new("d");
    let specification = Specification {
        id: id.clone(),
        capabilities: Capabilities {
            outlet: Arc::new(Outlet { device: id, routes: Vec::new() }),
            statistics: Arc::default(),
            storage: None,
            tcp: Vec::new(),
            http: Vec::new(),
            unverified_tls: Vec::new(),
            lines: Granted::default(),
            sockets: Sockets::new(10),
            lookups: Lookups::new(),
            tcp_lines: TcpLines::default(),
            tapes: None,
            surroundings: Surroundings::default(),
        },
        limits: Limits::default(),
        cloud_log: LogLevel::Off,
        health_window: Duration::from_secs(30),
        news: News::default(),
    };
    let given = Configuration::own(json!({ "main": configuration }).as_object().unwrap().clone());
    let prepared = prepare(&specification, driver, &given).await.unwrap();
    DeviceHandle::start(
        Arc::new(specification),
        prepared,
        Arc::new(Journal::in_memory(Duration::from_secs(60))),
        receipts,
    )
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_ends_after_ten_crashes_that_come_further_and_further_apart() {
    let mut handle = device("hostile", json!({"act": "trap in start"})).await;
    let begin = Instant::now();
    handle.status.wait_for(|status| status.phase == Phase::Failed).await.unwrap();
    assert_eq!(handle.spec.capabilities.statistics.crashes.get(), 10);
    // 1 + 2 + 4 + … + 128 s, each with a quarter more or less.
    let took = begin.elapsed().as_secs_f64();
    assert!((0.7 * 255.0..1.3 * 255.0).contains(&took), "{took} s");
    let problem = handle.status.borrow().problem.clone().unwrap();
    assert!(problem.contains("unreachable"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_refuses_to_start_is_tried_for_ever() {
    let handle = device("hostile", json!({"act": "error in start"})).await;
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(handle.status.borrow().phase, Phase::Restarting);
    // At least one each six minutes and a bit.
    assert!(
        handle.spec.capabilities.statistics.errors.get() > 200,
        "{}",
        handle.spec.capabilities.statistics.errors.get()
    );
    assert_eq!(handle.spec.capabilities.statistics.crashes.get(), 0);
}

/// Swaps the device to the same driver with a higher version and another configuration.
async fn swap(handle: &DeviceHandle, configuration: serde_json::Value) -> Receipt {
    let sandbox = Sandbox::new(Compiler::InProcess, None).unwrap();
    let name = handle.status.borrow().driver.manifest.driver.name.clone();
    let driver = fixture_with(&name, "version: 1.0.0", "version: 1.0.1");
    let driver = Arc::new(sandbox.prepare(driver.into()).await.unwrap());
    let given = Configuration::own(json!({ "main": configuration }).as_object().unwrap().clone());
    let prepared = prepare(&handle.spec, driver, &given).await.unwrap();
    handle.ask(|reply| Input::Swap(Box::new(prepared), "a test".into(), reply)).await.unwrap()
}

fn version(handle: &DeviceHandle) -> String {
    handle.status.borrow().driver.manifest.driver.version.clone()
}

#[tokio::test(start_paused = true)]
async fn a_new_driver_is_watched_for_the_health_window_and_then_stays() {
    let handle = device("hostile", json!({})).await;
    let receipt = swap(&handle, json!({})).await;
    assert_eq!(receipt.outcome, Outcome::Accepted);
    assert!(handle.status.borrow().watching);
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(!handle.status.borrow().watching);
    assert_eq!(version(&handle), "1.0.1");
    let receipt = handle.ask(|reply| Input::RollBack("a test".into(), reply)).await.unwrap();
    assert!(receipt.is_none(), "the old driver is gone by then");
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_is_called_rarely_is_watched_until_there_were_enough_calls() {
    let rarely = json!({ "interval_ms": 20_000 });
    let handle = device("echo", rarely.clone()).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(swap(&handle, rarely).await.outcome, Outcome::Accepted);
    // On the beat of the driver before: its tenth call is 200 s after the start of that, not after the swap.
    tokio::time::sleep(Duration::from_secs(192)).await;
    assert!(handle.status.borrow().watching);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!handle.status.borrow().watching);
    // Not for ever.
    let never = json!({ "interval_ms": 3_600_000 });
    assert_eq!(swap(&handle, never).await.outcome, Outcome::Accepted);
    tokio::time::sleep(Duration::from_secs(299)).await;
    assert!(handle.status.borrow().watching);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!handle.status.borrow().watching);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_swapped_faster_than_its_timer_goes_is_called_all_the_same() {
    let every_second = json!({ "interval_ms": 1000 });
    let handle = device("echo", every_second.clone()).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(swap(&handle, every_second.clone()).await.outcome, Outcome::Accepted);
    }
    assert_eq!(handle.spec.capabilities.statistics.calls.get(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_new_driver_that_traps_or_fails_more_than_the_old_one_is_rolled_back() {
    for (act, reason) in [("trap in on-timer", "unreachable"), ("error in on-timer", "100 % of its timer calls failed")]
    {
        let receipts = Receipts::in_memory();
        let mut handle = device_with("hostile", json!({}), receipts.clone()).await;
        assert_eq!(swap(&handle, json!({ "act": act })).await.outcome, Outcome::Accepted);
        let old = handle.status.wait_for(|status| status.driver.manifest.driver.version == "1.0.0");
        tokio::time::timeout(Duration::from_secs(40), old).await.expect("it goes back").unwrap();
        let receipts = receipts.all();
        let Some(Outcome::RolledBack(why)) = receipts.last().map(|receipt| &receipt.outcome) else { panic!() };
        assert!(why.contains(reason), "{act}: {why}");
        assert_eq!(handle.status.borrow().phase, Phase::Running);
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_does_not_take_over_changes_nothing() {
    for act in ["error in start", "trap in start", "trap in swap"] {
        let handle = device("hostile", json!({})).await;
        let receipt = swap(&handle, json!({ "act": act })).await;
        assert!(matches!(receipt.outcome, Outcome::Rejected(_)), "{act}: {receipt}");
        assert_eq!((version(&handle).as_str(), handle.status.borrow().phase), ("1.0.0", Phase::Running));
    }
}

/// A whole gateway without its program, on a clock that jumps.
#[tokio::test(start_paused = true)]
async fn the_supervisor_starts_swaps_rolls_back_and_says_what_it_cannot_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.toml");
    let text = "[sessions.main.enapter]\nhost = '127.0.0.1'\nport = 1\nhardware_id = 'S01'\n\
                [devices.a]\ndriver = 'echo.wasm'\n[devices.b]\ndriver = 'missing.wasm'\n";
    std::fs::write(&path, text).unwrap();
    std::fs::write(folder.path().join("echo.wasm"), fixture("echo")).unwrap();
    let config = Config::load(&path).unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let (supervisor, control) =
        Supervisor::open(&path, config, &state, Compiler::InProcess, Secrets::default()).unwrap();
    let running = tokio::spawn(supervisor.run());
    let is = async |device: &str, phase: Phase| {
        let status = control.status().await.unwrap();
        status.devices.iter().any(|report| report.id == device && report.phase == phase)
    };
    let wait = async |device: &str, phase: Phase| {
        let reached = async {
            while !is(device, phase).await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // Of a clock that jumps while nothing happens.
        let a_week = Duration::from_secs(7 * 24 * 3600);
        tokio::time::timeout(a_week, reached).await.unwrap_or_else(|_| panic!("{device} is never {}", phase.name()));
    };
    wait("a", Phase::Running).await;
    wait("b", Phase::Failed).await;
    // Its file comes later.
    std::fs::write(folder.path().join("missing.wasm"), fixture("echo")).unwrap();
    wait("b", Phase::Running).await;
    let newer = folder.path().join("newer.wasm");
    std::fs::write(&newer, fixture_with("echo", "version: 1.0.0", "version: 1.1.0")).unwrap();
    let receipt = control.swap("a", Some(newer), "a test", false).await.unwrap();
    assert_eq!(receipt.outcome, Outcome::Accepted);
    assert_eq!(receipt.new.unwrap().version, "1.1.0");
    assert!(matches!(control.roll_back("a", None, "a test").await.unwrap().outcome, Outcome::RolledBack(_)));
    assert_eq!(control.restart("a").await, Ok(()));
    let error = control.restart("aa").await.unwrap_err().to_string();
    assert!(error.starts_with("no device \"aa\"; did you mean"), "{error}");
    control.stop().await;
    running.await.unwrap();
}
