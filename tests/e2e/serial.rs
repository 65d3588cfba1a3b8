//! Serial ports without Modbus: turns, ports that go and come, and drivers that
//! do not let go.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command};

use sandgate_test_needs::needs;
use serde_json::json;

use crate::harness::{Broker, Ended, Gateway, Message, Observer, root, until};

/// Two ends of a serial line, in a folder.
fn line(folder: &Path) -> Ended {
    let end = |name: &str| format!("pty,raw,echo=0,link={}", folder.join(name).display());
    let line: Child = Command::new("socat").arg(end("near")).arg(end("far")).spawn().unwrap();
    until("the line", || (folder.join("near").exists() && folder.join("far").exists()).then_some(()));
    Ended(line)
}

/// Scales with the addresses A and B at the far end, that answer in two parts; ends
/// with the line. Whoever asks before the answer is over is told of.
fn scales(folder: &Path) {
    let mut port = std::fs::File::options().read(true).write(true).open(folder.join("far")).unwrap();
    std::thread::spawn(move || {
        let mut heard = Vec::new();
        let mut part = [0; 100];
        loop {
            match port.read(&mut part) {
                Ok(count) if count > 0 => heard.extend_from_slice(&part[..count]),
                _ => return,
            }
            while let Some(end) = heard.iter().position(|byte| *byte == b'\r') {
                let asked: Vec<u8> = heard.drain(..=end).collect();
                let is_crossed = !heard.is_empty();
                let weight = if asked[0] == b'A' { "12.5" } else { "70.5" };
                let weight = if is_crossed { "-1" } else { weight };
                let answer = format!("{}:{weight}\r\n", char::from(asked[0]));
                let (first, second) = answer.split_at(3);
                if port.write_all(first.as_bytes()).is_err() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(100));
                if port.write_all(second.as_bytes()).is_err() {
                    return;
                }
            }
        }
    });
}

#[needs("socat")]
#[tokio::test(flavor = "multi_thread")]
async fn two_devices_share_a_port_that_goes_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let held = line(folder.path());
    scales(folder.path());
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[]);
    std::fs::create_dir(gateway.path("scale")).unwrap();
    for name in ["manifest.yml", "firmware.lua"] {
        let from = root().join("tests/fixtures/blueprints/scale").join(name);
        std::fs::copy(from, gateway.path("scale").join(name)).unwrap();
    }
    let device = |id: &str| format!("[devices.{id}]\ndriver = 'scale'\ngrants.serial.rs232 = 'port'\n");
    let port = folder.path().join("near");
    gateway.start(
        broker.port,
        &format!("[buses.port.serial]\nport = '{}'\n{}{}", port.display(), device("a"), device("b")),
    );
    gateway.wait_for_samples("b", 1);
    let request = json!({ "id": "1", "name": "configure", "arguments": { "address": "B" } });
    observer.command("s--b", request).await;
    let weight = async |mark: usize, id: &str, expected: f64| {
        let topic = format!("v1/from/S01/s--{id}/v1/telemetry");
        let is_it = |m: &Message| m.on(&topic).filter(|t| t["weight"] == expected);
        observer.find_after(mark, &format!("the weight of {id}"), is_it).await;
    };
    weight(0, "b", 70.5).await;
    for id in ["a", "b"] {
        gateway.wait_for_samples(id, gateway.device(id)["samples"].as_u64().unwrap() + 5);
    }
    // Nobody has asked into the answer of another.
    let told = observer.all();
    assert!(told.iter().all(|m| !m.topic.ends_with("telemetry") || m.json()["weight"] != -1.0), "{told:?}");
    // Somebody pulls the plug.
    drop(held);
    gateway.wait_for_log("does not work any more");
    observer.find("silence", |m| m.on("v1/from/S01/s--a/v1/telemetry").filter(|t| t["status"] == "silent")).await;
    let _line = line(folder.path());
    scales(folder.path());
    let mark = observer.mark();
    weight(mark, "a", 12.5).await;
    weight(mark, "b", 70.5).await;
    gateway.wait_for_log("is open");
    assert_eq!(gateway.device("a")["crashes"], 0);
}
