//! Shared Modbus lines: the three drivers against the simulated site, and the
//! meter against a server that others wrote.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Value as Json, json};

use sandgate_test_needs::needs;

use crate::harness::{Broker, Ended, Gateway, Observer, SANDGATE, must, root};

/// A driver of plugins/, built by the program itself.
fn plugin(name: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("driver.wasm");
    let source = root().join("plugins").join(name);
    must(Command::new(SANDGATE).arg("build").arg(source).arg("--output").arg(&file));
    std::fs::read(file).unwrap()
}

/// The server of tests/servers, and where it listens: a port or a serial line.
pub struct Server {
    process: Child,
    pub place: String,
    pub values: Json,
}

impl Server {
    /// Starts tests/servers/modbus_device.py.
    pub fn start(arguments: &[&str]) -> Server {
        let tools = root().join("target/tools");
        // Tests run side by side; the installation must not.
        static INSTALLED: OnceLock<()> = OnceLock::new();
        INSTALLED.get_or_init(|| {
            must(Command::new("sh").arg(root().join("tests/servers/install.sh")).arg(&tools));
        });
        let mut process = Command::new(tools.join("pymodbus/bin/python"))
            .arg(root().join("tests/servers/modbus_device.py"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(process.stdout.take().unwrap()).lines();
        let place = lines.next().unwrap().unwrap().strip_prefix("listening ").unwrap().to_owned();
        let values = lines.next().unwrap().unwrap();
        let values = serde_json::from_str(values.strip_prefix("values ").unwrap()).unwrap();
        Server { process, place, values }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn meter(id: &str, unit: u8) -> String {
    format!(
        "[devices.{id}]\ndriver = 'meter.wasm'\nconfiguration.connection.unit = {unit}\n\
         configuration.connection.poll_ms = 200\ngrants.modbus.line = 'field'\n"
    )
}

#[needs("python3")]
#[tokio::test(flavor = "multi_thread")]
async fn an_independent_server_is_read_right_and_a_dead_unit_does_not_stall_the_line() {
    let server = Server::start(&["--unit", "1", "--unit", "7", "--silent", "9"]);
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let devices = format!(
        "[buses.field.modbus_tcp]\naddress = '127.0.0.1:{}'\ntimeout = '300ms'\n{}{}{}",
        server.place,
        meter("first", 1),
        meter("seventh", 7),
        meter("dead", 9),
    );
    let mut gateway = Gateway::prepare(&[("meter.wasm", plugin("power-meter-pm2100"))]);
    gateway.start(broker.port, &devices);
    for id in ["first", "seventh"] {
        let topic = format!("v1/from/S01/s--{id}/v1/telemetry");
        let sample = observer.find("a sample", |m| m.on(&topic).filter(|t| t["total_power"].is_number())).await;
        for name in ["ac_l1_current", "ac_l2_voltage", "ac_frequency"] {
            assert_eq!(sample[name], server.values[name], "{name}");
        }
        // The meter counts in kW and kWh.
        for name in ["total_power", "ac_l3_power", "energy_total"] {
            assert_eq!(sample[name].as_f64().unwrap(), server.values[name].as_f64().unwrap() * 1000.0, "{name}");
        }
        assert_eq!((&sample["status"], &sample["alerts"]), (&json!("ok"), &json!([])));
        let topic = format!("v1/from/S01/s--{id}/v1/properties");
        let properties = observer.find("properties", |m| m.on(&topic)).await;
        assert_eq!(properties["model"], server.values["model"]);
    }
    let dead = observer
        .find("the state of the dead meter", |m| {
            m.on("v1/from/S01/s--dead/v1/telemetry").filter(|t| t["status"] == "conn_error")
        })
        .await;
    assert_eq!((&dead["alerts"], &dead["conn_alerts"]), (&Json::Null, &json!(["communication_failed"])));
    gateway.wait_for_log("does not answer; asking less often");
    let before = gateway.device("first")["samples"].as_u64().unwrap();
    // In its quarantine the dead one takes no time of the line.
    gateway.wait_for_samples("first", before + 20);
    assert_eq!(gateway.device("dead")["crashes"], 0);
}

/// A Modbus server that counts what each unit is asked, and answers for unit 1 only.
pub fn counting_server() -> (u16, Arc<Mutex<BTreeMap<u8, u64>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked: Arc<Mutex<BTreeMap<u8, u64>>> = Arc::default();
    let counts = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, counts) = (stream.unwrap(), Arc::clone(&counts));
            std::thread::spawn(move || {
                // Transaction, protocol, length, unit; function, address, count.
                let mut request = [0; 12];
                while stream.read_exact(&mut request).is_ok() {
                    let unit = request[6];
                    *counts.lock().unwrap().entry(unit).or_default() += 1;
                    if unit != 1 {
                        continue;
                    }
                    let size = request[11] * 2;
                    let mut answer = [&request[..4], &[0, size + 3, unit, request[7], size]].concat();
                    answer.resize(answer.len() + usize::from(size), 0);
                    stream.write_all(&answer).unwrap();
                }
            });
        }
    });
    (port, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_unit_is_asked_less_and_less_while_the_others_are_asked_as_before() {
    let (port, asked) = counting_server();
    let broker = Broker::start();
    let devices = format!(
        "[buses.field.modbus_tcp]\naddress = '127.0.0.1:{port}'\ntimeout = '300ms'\n{}{}",
        meter("alive", 1),
        meter("dead", 9),
    );
    let mut gateway = Gateway::prepare(&[("meter.wasm", plugin("power-meter-pm2100"))]);
    gateway.start(broker.port, &devices);
    gateway.wait_for_log("does not answer; asking less often");
    let count = |unit: u8| asked.lock().unwrap().get(&unit).copied().unwrap_or_default();
    let (alive, dead) = (count(1), count(9));
    assert_eq!(dead, 3, "it is given up after so many silences");
    crate::harness::until("the living unit to be asked", || (count(1) >= alive + 200).then_some(()));
    // Its pauses double from 2 s: some minutes would bring six more.
    assert!(count(9) <= dead + 6, "{dead} questions before, {} after", count(9));
}

/// Two ends of a serial line.
struct Line(Child);

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[needs("python3", "socat")]
#[tokio::test(flavor = "multi_thread")]
async fn a_serial_line_is_shared_by_its_units_and_a_dead_one_does_not_stall_it() {
    let folder = tempfile::tempdir().unwrap();
    let end = |name: &str| format!("pty,raw,echo=0,link={}", folder.path().join(name).display());
    let _line = Line(Command::new("socat").arg(end("near")).arg(end("far")).spawn().unwrap());
    crate::harness::until("the line", || folder.path().join("far").exists().then_some(()));
    let far = folder.path().join("far");
    let server = Server::start(&["--serial", far.to_str().unwrap(), "--unit", "1", "--unit", "7", "--silent", "9"]);
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let devices = format!(
        "[buses.field.modbus_rtu]\nport = '{}'\ntimeout = '300ms'\n{}{}{}",
        folder.path().join("near").display(),
        meter("first", 1),
        meter("seventh", 7),
        meter("dead", 9),
    );
    let mut gateway = Gateway::prepare(&[("meter.wasm", plugin("power-meter-pm2100"))]);
    gateway.start(broker.port, &devices);
    for id in ["first", "seventh"] {
        let topic = format!("v1/from/S01/s--{id}/v1/telemetry");
        let sample = observer.find("a sample", |m| m.on(&topic).filter(|t| t["total_power"].is_number())).await;
        assert_eq!(sample["ac_l1_voltage"], server.values["ac_l1_voltage"]);
    }
    gateway.wait_for_log("does not answer; asking less often");
    for id in ["first", "seventh"] {
        let before = gateway.device(id)["samples"].as_u64().unwrap();
        gateway.wait_for_samples(id, before + 10);
        let report = gateway.device(id);
        assert_eq!((&report["crashes"], &report["telemetry"]["status"]), (&json!(0), &json!("ok")), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_shows_four_healthy_devices_and_obeys() {
    // The demo builds them too; a first build takes longer than a test waits.
    for name in ["power-meter-pm2100", "inverter-deye", "relay-tasmota"] {
        plugin(name);
    }
    for cloud in ["enapter", "kaa"] {
        demonstrate(cloud);
    }
}

fn demonstrate(cloud: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(SANDGATE);
    command
        .args(["demo", "--plain", "--seconds", "600", "--folder", "demo", "--cloud", cloud])
        .arg("--plugins")
        .arg(root().join("plugins"))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(folder.path().join("said")).unwrap())
        .stderr(Stdio::null());
    let mut demo = Ended(command.spawn().unwrap());
    let cli = |arguments: &[&str]| {
        Command::new(SANDGATE)
            .args(arguments)
            .args(["--state", "demo/state", "--json"])
            .current_dir(folder.path())
            .output()
            .unwrap()
    };
    let device = |id: &str| -> Option<Json> {
        let status: Json = serde_json::from_slice(&cli(&["devices"]).stdout).ok()?;
        status["devices"].as_array()?.iter().find(|device| device["id"] == id).cloned()
    };
    let healthy = |id: &str| {
        crate::harness::until(&format!("{id} to be healthy, now {:?}", device(id)), || {
            device(id).filter(|device| {
                device["phase"] == "running" && device["alerts"] == json!([]) && device["samples"].as_u64() > Some(1)
            })
        })
    };
    for id in ["house_meter", "heat_pump_meter", "inverter", "lamp"] {
        let report = healthy(id);
        assert_eq!(
            (&report["rejected"], &report["errors"], &report["crashes"]),
            (&json!(0), &json!(0), &json!(0)),
            "{report:#}"
        );
    }
    crate::harness::until("messages in the cloud", || {
        let status: Json = serde_json::from_slice(&cli(&["devices"]).stdout).ok()?;
        let session = status["sessions"].as_object()?.values().next()?.clone();
        (session["connected"] == true && session["delivered"].as_u64()? > 4).then_some(())
    });
    assert!(device("inverter").unwrap()["telemetry"]["battery_soc"].is_number());
    assert_eq!(device("lamp").unwrap()["telemetry"]["status"], "on");

    // What it says to try at the cloud works.
    let said = std::fs::read_to_string(folder.path().join("said")).unwrap();
    let hints: Vec<&str> = said.lines().filter_map(|line| line.split_once(" cloud ")?.1.into()).collect();
    assert!(hints.len() >= 3 && hints.iter().all(|hint| hint.starts_with(cloud)), "{hints:?}");
    for hint in hints {
        let words = hint.split_once(" '").map_or(hint.split(' ').collect::<Vec<_>>(), |(before, rest)| {
            let (quoted, after) = rest.split_once("' ").unwrap();
            before.split(' ').chain([quoted]).chain(after.split(' ')).collect()
        });
        let words: Vec<&str> = words.into_iter().filter(|word| *word != "-f").collect();
        must(Command::new(SANDGATE).arg("cloud").args(words));
    }

    assert!(cli(&["command", "lamp", "turn_off"]).status.success());
    crate::harness::until("the lamp to go off", || (device("lamp")?["telemetry"]["status"] == "off").then_some(()));
    let set = cli(&["command", "inverter", "set_max_charge_current", "amps=60"]);
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    let settings: Json = serde_json::from_slice(&cli(&["command", "inverter", "read_settings"]).stdout).unwrap();
    assert!(settings.to_string().contains("60"), "{settings}");
    must(Command::new("kill").args(["-INT", &demo.0.id().to_string()]));
    assert!(demo.0.wait().unwrap().success());
}

/// The live view on a terminal of its own, which `script` lends.
#[needs("script")]
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_draws_on_a_terminal_and_leaves_it_as_it_was() {
    for name in ["power-meter-pm2100", "inverter-deye", "relay-tasmota"] {
        plugin(name);
    }
    let folder = tempfile::tempdir().unwrap();
    let plugins = root().join("plugins");
    let command = format!("stty rows 40 cols 140; {SANDGATE} demo --folder demo --plugins {}", plugins.display());
    let mut demo = Command::new("script");
    demo.args(["--quiet", "--return", "--flush", "--command", &command, "screen"]);
    demo.current_dir(folder.path()).env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut demo = Ended(demo.spawn().unwrap());
    let screen =
        || String::from_utf8_lossy(&std::fs::read(folder.path().join("screen")).unwrap_or_default()).into_owned();
    for text in ["\u{1b}[?1049h", "house_meter", "heat_pump_meter", "inverter", "lamp", "power-meter-pm2100"] {
        crate::harness::until(&format!("{text:?} on the screen"), || screen().contains(text).then_some(()));
    }
    demo.0.stdin.take().unwrap().write_all(b"q").unwrap();
    assert!(demo.0.wait().unwrap().success());
    assert!(screen().contains("\u{1b}[?1049l"), "the screen before is shown again");
}
