//! Register maps as drivers.

use std::path::Path;
use std::process::Command;

use sandgate_test_needs::needs;

use crate::harness::{Broker, Gateway, Observer, SANDGATE, must, root};
use crate::modbus::Server;

/// The PM2100 as a map, in a folder.
pub fn pm2100(folder: &Path) {
    let manifest = std::fs::read_to_string(root().join("plugins/power-meter-pm2100/manifest.yml")).unwrap();
    let map = std::fs::read_to_string(root().join("tests/fixtures/maps/pm2100.yml")).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("manifest.yml"), format!("{manifest}\n{map}")).unwrap();
}

#[test]
fn the_pm2100_as_a_map_passes_all_scenarios_of_the_driver_in_rust_and_exploring_finds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    pm2100(&folder.path().join("meter"));
    let tests = root().join("plugins/power-meter-pm2100/tests");
    let mut test = Command::new(SANDGATE);
    test.args(["test", "meter", "--explore", "50", "--tests"]).arg(tests).current_dir(folder.path());
    let said = must(&mut test);
    assert!(said.contains("\n10 scenarios passed in ") && said.contains("  telemetry     16 of 16\n"), "{said}");
}

#[test]
fn a_new_map_passes_its_scenarios_as_it_is_and_mistakes_name_their_place() {
    let folder = tempfile::tempdir().unwrap();
    must(Command::new(SANDGATE).args(["new", "my-meter", "--lang", "map"]).current_dir(folder.path()));
    let said = must(Command::new(SANDGATE).args(["test", "my-meter", "--explore", "50"]).current_dir(folder.path()));
    assert!(said.contains("3 scenarios passed"), "{said}");
    let manifest = folder.path().join("my-meter/manifest.yml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("{ input: 2, type: i32 }", "{ input: 2, type: f32 }")).unwrap();
    let output = Command::new(SANDGATE).args(["build", "my-meter"]).current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected =
        "manifest.yml: map.telemetry.power: the registers give a float, and the manifest declares another type";
    assert!(!output.status.success() && said.contains(expected), "{said}");
}

#[needs("python3")]
#[tokio::test(flavor = "multi_thread")]
async fn a_saved_map_is_swapped_in() {
    let server = Server::start(&["--unit", "1"]);
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[]);
    pm2100(&gateway.path("meter"));
    gateway.start(
        broker.port,
        &format!(
            "[buses.field.modbus_tcp]\naddress = '127.0.0.1:{}'\n[devices.m]\ndriver = 'meter'\n\
             configuration.connection = {{ unit = 1, poll_ms = 200 }}\ngrants.modbus.line = 'field'\n\
             health_window = '1s'\n",
            server.place
        ),
    );
    let telemetry = "v1/from/S01/s--m/v1/telemetry";
    let sample = observer.find("a sample", |m| m.on(telemetry).filter(|t| t["total_power"].is_number())).await;
    assert_eq!(sample["ac_l1_voltage"], server.values["ac_l1_voltage"]);
    let text = std::fs::read_to_string(gateway.path("meter/manifest.yml")).unwrap();
    let changed = text.replace(
        "ac_frequency: { holding: 3109, type: f32 }",
        "ac_frequency: { holding: 3109, type: f32, offset: 1000 }",
    );
    gateway.overwrite("meter/manifest.yml", changed.as_bytes());
    observer.find("the changed map", |m| m.on(telemetry).filter(|t| t["ac_frequency"].as_f64() > Some(1000.0))).await;
    // A broken one is refused with its place, and the old one stays.
    gateway.overwrite("meter/manifest.yml", changed.replace("holding: 3109", "holding: 70000").as_bytes());
    gateway.wait_for_log("manifest.yml:");
    assert_eq!(gateway.device("m")["crashes"], 0);
}
