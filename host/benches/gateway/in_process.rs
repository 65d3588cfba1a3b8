//! Measurements without a broker: the sandbox, memory, swaps, restarts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sandgate::device::{Configuration, DeviceHandle, Input, Phase, Specification, prepare};
use sandgate::manifest::Manifest;
use sandgate::message::{Alerts, Attribute, CommandRequest, Uplink, Value, now};
use sandgate::status::resident_memory;
use serde_json::json;
use tokio::sync::oneshot;

use crate::print;
use crate::setup::{driver, median, micros, outbox, p99, recorded_specification, sandbox, specification, start};

#[path = "../../../tests/fixtures/bench/core.rs"]
mod core;

// One timer call that sends one sample of four attributes.

pub async fn sandbox_cost() {
    const CALLS: u32 = 20_000;
    const ROUNDS: usize = 9;
    let sandbox = sandbox();
    let driver = driver(&sandbox, "bench", "1.0.0").await;
    let (mut guest, mut native) = (Vec::new(), Vec::new());
    // A small outbox, so that both sides drop the oldest all the time.
    let outbox = outbox(1 << 16);
    let spec = specification("bench", &outbox);
    let given = Configuration::own(json!({"main": {"interval_ms": 1.0, "burst": 1}}).as_object().unwrap().clone());
    let mut instance = prepare(&spec, Arc::clone(&driver), &given).await.unwrap().into_started("bench").await.unwrap();
    let recorded_spec = recorded_specification("bench", &outbox);
    let recorded = prepare(&recorded_spec, Arc::clone(&driver), &given).await.unwrap();
    let mut recorded = recorded.into_started("bench").await.unwrap();
    let mut taped = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for _ in 0..CALLS {
            instance.on_timer(1).await.unwrap().unwrap();
        }
        guest.push(begin.elapsed() / CALLS);
        let begin = Instant::now();
        for _ in 0..CALLS {
            recorded.on_timer(1).await.unwrap().unwrap();
        }
        taped.push(begin.elapsed() / CALLS);
        let begin = Instant::now();
        for count in 0..CALLS {
            native_call(&driver.manifest, &spec, i64::from(count));
        }
        native.push(begin.elapsed() / CALLS);
    }
    let (guest, native) = (median(guest), median(native));
    let ratio = guest.as_secs_f64() / native.as_secs_f64();
    let what = "timer call with one sample, guest to publication, vs native";
    print(
        what,
        micros(guest),
        &micros(native),
        Some(ratio),
        ("<= 6 µs and <= 4", guest <= Duration::from_micros(6) && ratio <= 4.0),
    );
    let taped = median(taped);
    let ratio = taped.as_secs_f64() / guest.as_secs_f64();
    let what = "the same, recorded on the device's tape";
    print(what, micros(taped), &micros(guest), Some(ratio), ("<= 1.2", ratio <= 1.2));
    let tape = recorded.tape(driver.header("bench")).unwrap();
    let each = tape.to_bytes().len() as u64 / tape.extent().0;
    print("the same: bytes in a file of the tape", format!("{each}"), "", None, ("<= 60", each <= 60));
}

/// The same driver without a sandbox: makes the same values, checks them
/// against the same manifest, sends them the same way.
fn native_call(manifest: &Manifest, spec: &Specification, count: i64) {
    let (count, voltage, power, on) = core::values(count);
    let attribute = |name: &str, value| Attribute { name: name.to_owned(), value };
    let attributes = vec![
        attribute("count", Value::Integer(count)),
        attribute("voltage", Value::Float(voltage)),
        attribute("power", Value::Float(power)),
        attribute("on", Value::Boolean(on)),
    ];
    for attribute in &attributes {
        let field = manifest.blueprint.telemetry.get(&attribute.name).unwrap();
        field.check(&attribute.value, |_| false).unwrap();
    }
    let time = now();
    spec.capabilities.statistics.sample(time, &attributes, true);
    spec.capabilities.outlet.send(&Uplink::Telemetry {
        time,
        is_own: true,
        attributes: &attributes,
        alerts: &Alerts::None,
        tells_alerts: false,
    });
}

// Resident memory of an idle device.

pub async fn memory() {
    const DEVICES: usize = 1000;
    let sandbox = sandbox();
    let driver = driver(&sandbox, "bench", "1.0.0").await;
    let outbox = outbox(1 << 20);
    let configuration = json!({"interval_ms": 3_600_000.0});
    let warm = start(&specification("warm", &outbox), &driver, configuration.clone()).await;
    let before = resident_memory();
    let mut handles = Vec::new();
    for number in 0..DEVICES {
        handles.push(start(&specification(&format!("d{number}"), &outbox), &driver, configuration.clone()).await);
    }
    // Each has answered, so each has started.
    for handle in &handles {
        ping(handle, "ready").await;
    }
    let each = (resident_memory() - before) / DEVICES as u64;
    print(
        "resident memory of an idle device, of 1,000",
        format!("{:.1} KiB", each as f64 / 1024.0),
        "",
        None,
        ("<= 64 KiB", each <= 64 << 10),
    );
    drop((warm, handles));
}

async fn ping(handle: &DeviceHandle, id: &str) {
    let (reply, done) = oneshot::channel();
    let request =
        CommandRequest { id: id.to_owned(), session: None, name: "ping".into(), arguments: serde_json::Map::new() };
    handle.command(request, Some(reply)).unwrap();
    done.await.unwrap().unwrap();
}

// 1,000 swaps under 1,000 samples a second, each of which takes 64 KiB of state along.

pub async fn swaps() {
    const SWAPS: usize = 1000;
    let sandbox = sandbox();
    let drivers = [driver(&sandbox, "bench", "1.0.0").await, driver(&sandbox, "bench", "1.0.1").await];
    let outbox = outbox(1 << 30);
    let spec = specification("bench", &outbox);
    let configuration = json!({"interval_ms": 1.0, "burst": 4, "state_kib": 64});
    let handle = start(&spec, &drivers[0], configuration.clone()).await;
    let given = Configuration::own(json!({ "main": configuration }).as_object().unwrap().clone());
    let mut pauses = Vec::new();
    let begin = Instant::now();
    for number in 0..SWAPS {
        let prepared = prepare(&spec, Arc::clone(&drivers[(number + 1) % 2]), &given).await.unwrap();
        let ask = |reply| Input::Swap(Box::new(prepared), "bench".into(), reply);
        let receipt = handle.ask(ask).await.unwrap();
        assert_eq!(receipt.outcome, sandgate::receipt::Outcome::Accepted, "{receipt}");
        pauses.push(Duration::from_micros(receipt.pause_us));
        // Timers run on between two swaps.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let seconds = begin.elapsed().as_secs_f64();
    handle.ask(Input::Stop).await.unwrap();
    let mut counts = Vec::new();
    while let Some((sequence, publication)) =
        outbox.take(tokio::time::Instant::now()).and_then(|mut parcel| parcel.parts.pop())
    {
        let sample: serde_json::Value = serde_json::from_slice(&publication.payload).unwrap();
        counts.extend(sample["count"].as_u64());
        outbox.acknowledge(sequence);
    }
    let last = counts.iter().copied().max().unwrap();
    let mut unique = counts.clone();
    unique.sort_unstable();
    unique.dedup();
    let (lost, doubled) = (last as usize - unique.len(), counts.len() - unique.len());
    let rate = counts.len() as f64 / seconds;
    let slow = p99(pauses.clone());
    print(
        &format!("swap pause, p50 of {SWAPS} under {rate:.0} samples/s"),
        micros(median(pauses.clone())),
        "",
        None,
        ("", true),
    );
    print(
        &format!("swap pause with 64 KiB of state, p99; lost {lost}, duplicated {doubled}"),
        micros(slow),
        "",
        None,
        ("<= 1 ms, 0, 0", slow <= Duration::from_millis(1) && lost == 0 && doubled == 0),
    );
}

// From a trap of a new driver in its health window to an answer of the old one.

pub async fn roll_back_after_trap() {
    const TRAPS: usize = 200;
    let sandbox = sandbox();
    let (good, bad) = (driver(&sandbox, "bench", "1.0.0").await, driver(&sandbox, "hostile", "1.0.0").await);
    let outbox = outbox(1 << 24);
    let mut spec = specification("trap", &outbox);
    Arc::get_mut(&mut spec).unwrap().health_window = Duration::from_secs(60);
    let handle = start(&spec, &good, json!({"interval_ms": 0.0})).await;
    let given = |configuration: serde_json::Value| {
        Configuration::own(json!({ "main": configuration }).as_object().unwrap().clone())
    };
    let mut times = Vec::new();
    for number in 0..TRAPS {
        let act = given(json!({"act": "trap in handle-command"}));
        let prepared = prepare(&spec, Arc::clone(&bad), &act).await.unwrap();
        let receipt = handle.ask(|reply| Input::Swap(Box::new(prepared), "bench".into(), reply)).await.unwrap();
        assert_eq!(receipt.outcome, sandgate::receipt::Outcome::Accepted, "{receipt}");
        let (reply, done) = oneshot::channel();
        let arguments = serde_json::Map::new();
        let request = CommandRequest { id: format!("c{number}"), session: None, name: "act".into(), arguments };
        let begin = Instant::now();
        handle.command(request, Some(reply)).unwrap();
        done.await.unwrap().unwrap_err();
        ping(&handle, &format!("p{number}")).await;
        times.push(begin.elapsed());
    }
    let what = "trap of a new driver to an answer of the old one, p99";
    let slow = p99(times);
    print(what, micros(slow), "", None, ("<= 5 ms", slow <= Duration::from_millis(5)));
}

// From a trap to the next answer.

pub async fn restart_after_trap() {
    const TRAPS: usize = 200;
    let sandbox = sandbox();
    let driver = driver(&sandbox, "hostile", "1.0.0").await;
    let outbox = outbox(1 << 24);
    let spec = specification("trap", &outbox);
    let handle = start(&spec, &driver, json!({"act": "trap in handle-command"})).await;
    let mut times = Vec::new();
    for number in 0..TRAPS {
        let (reply, done) = oneshot::channel();
        let request = CommandRequest {
            id: format!("c{number}"),
            session: None,
            name: "act".into(),
            arguments: serde_json::Map::new(),
        };
        let begin = Instant::now();
        handle.command(request, Some(reply)).unwrap();
        // The answer comes after the fresh start.
        done.await.unwrap().unwrap_err();
        times.push(begin.elapsed());
        assert_eq!(handle.status.borrow().phase, Phase::Running);
        // By hand, so that the next crash counts as the first.
        handle.ask(|reply| Input::Restart(None, reply)).await.unwrap();
    }
    let what = "command that traps to serving again, p99 of first restarts";
    let slow = p99(times);
    print(what, micros(slow), "", None, ("<= 5 ms", slow <= Duration::from_millis(5)));
}
