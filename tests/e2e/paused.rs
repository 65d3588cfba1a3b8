//! What takes a device minutes, in milliseconds: the device's own task and a
//! driver, on a clock that jumps to the next thing that is due.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sandgate::config::{Limits, LogLevel};
use sandgate::device::{Configuration, DeviceHandle, News, Phase, Specification, prepare};
use sandgate::journal::Journal;
use sandgate::message::DeviceId;
use sandgate::network::Lookups;
use sandgate::receipt::Receipts;
use sandgate::router::Outlet;
use sandgate::sandbox::{Capabilities, Compiler, Sandbox};
use sandgate::sockets::Sockets;
use serde_json::json;
use tokio::time::Instant;

use crate::harness::fixture;

async fn device(driver: &str, configuration: serde_json::Value) -> DeviceHandle {
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
            buses: BTreeMap::new(),
            sockets: Sockets::new(10),
            lookups: Lookups::new(),
        },
        limits: Limits::default(),
        cloud_log: LogLevel::Off,
        health_window: Duration::from_secs(30),
        news: News::default(),
    };
    let given = Configuration::own(json!({ "main": configuration }).as_object().unwrap().clone());
    let prepared = prepare(&specification, driver, &given).await.unwrap();
    let (journal, receipts) = (Arc::new(Journal::in_memory()), Receipts::in_memory());
    DeviceHandle::start(Arc::new(specification), prepared, journal, receipts)
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
