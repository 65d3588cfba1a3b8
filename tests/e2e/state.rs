//! The state folder: whose it is, and what damage to it does. Every file, every
//! damage, at the start, while the gateway runs and at its end: it starts,
//! serves and ends, and says what is wrong.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::{Broker, Gateway, PATIENCE, SANDGATE, fixture, must, until};

const DEVICE: &str = "[devices.d]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 50\n\
                      limits.telemetry = '1000/s'\n";

/// What can happen to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Missing,
    Empty,
    Half,
    Flipped,
    Rubbish,
    Grown,
    Folder,
    Fifo,
    DanglingLink,
    LinkToItself,
    Device,
}

const DAMAGES: [Damage; 11] = [
    Damage::Missing,
    Damage::Empty,
    Damage::Half,
    Damage::Flipped,
    Damage::Rubbish,
    Damage::Grown,
    Damage::Folder,
    Damage::Fifo,
    Damage::DanglingLink,
    Damage::LinkToItself,
    Damage::Device,
];

impl Damage {
    fn apply(self, path: &Path) {
        let bytes = fs::read(path).unwrap_or_default();
        // A running gateway may have removed it meanwhile.
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        assert!(removed.is_ok() || removed.is_err_and(|error| error.kind() == ErrorKind::NotFound));
        match self {
            Damage::Missing => {}
            Damage::Empty => fs::write(path, "").unwrap(),
            Damage::Half => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
            Damage::Flipped => {
                let mut bytes = bytes;
                if let Some(byte) = {
                    let middle = bytes.len() / 2;
                    bytes.get_mut(middle)
                } {
                    *byte ^= 0x10;
                }
                fs::write(path, bytes).unwrap();
            }
            Damage::Rubbish => fs::write(path, [0xff; 5000]).unwrap(),
            Damage::Grown => {
                fs::write(path, &bytes).unwrap();
                // Sparse: 64 GiB that no disk has to hold.
                fs::File::options().write(true).open(path).unwrap().set_len(64 << 30).unwrap();
            }
            Damage::Folder => fs::create_dir_all(path.join("inside")).unwrap(),
            Damage::Fifo => drop(must(Command::new("mkfifo").arg(path))),
            Damage::DanglingLink => symlink("nowhere", path).unwrap(),
            Damage::LinkToItself => symlink(path, path).unwrap(),
            Damage::Device => symlink("/dev/zero", path).unwrap(),
        }
    }
}

/// All files and folders below a folder, itself not.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(below(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

/// A gateway whose state folder holds all that there can be.
fn lived(broker: &Broker) -> Gateway {
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.start(broker.port, DEVICE);
    gateway.wait_for_samples("d", 3);
    assert!(gateway.cli(&["command", "d", "store"]).status.success());
    assert!(gateway.cli(&["swap", "d"]).status.success());
    gateway
}

fn serves(gateway: &mut Gateway, case: &str) {
    gateway.wait_for_device("d", case, |device| (device["phase"] == "running").then_some(()));
    let samples = gateway.device("d")["samples"].as_u64().unwrap();
    gateway.wait_for_samples("d", samples + 2);
    let output = gateway.cli(&["command", "d", "count"]);
    assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(gateway.is_alive(), "{case}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_damage_to_any_file_ends_or_hangs_the_gateway() {
    let broker = Broker::start();
    let mut gateway = lived(&broker);
    gateway.terminate();
    let state = gateway.path("sandgate-state");
    let whole = gateway.path("whole");
    must(Command::new("cp").arg("-a").arg(&state).arg(&whole));
    let files: Vec<PathBuf> = below(&whole).iter().map(|path| path.strip_prefix(&whole).unwrap().to_owned()).collect();
    let has = |name: &str| files.iter().any(|file| file.starts_with(name));
    for name in [".sandgate", "commands.jsonl", "devices.jsonl", "swaps.jsonl", "cache", "drivers", "storage"] {
        assert!(has(name), "{name} is not among {files:?}");
    }
    let mut refused = Vec::new();
    for file in &files {
        for damage in DAMAGES {
            fs::remove_dir_all(&state).unwrap();
            must(Command::new("cp").arg("-a").arg(&whole).arg(&state));
            let case = format!("{damage:?} in the place of {}", file.display());
            damage.apply(&state.join(file));
            fs::write(gateway.path("log"), "").unwrap();
            gateway.restart();
            // Without its mark the folder may be another's: then the gateway ends with that word.
            let started = until(&case, || match gateway.is_alive() {
                false => Some(false),
                true => (gateway.device("d")["phase"] == "running").then_some(true),
            });
            match started {
                true => {
                    serves(&mut gateway, &case);
                    gateway.terminate();
                }
                false => {
                    let log = gateway.log();
                    assert!(file.starts_with(".sandgate") && log.contains("expected"), "{case}: {log}");
                    gateway.kill();
                    refused.push(case);
                }
            }
        }
    }
    assert!(refused.len() < DAMAGES.len(), "{refused:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_under_a_running_gateway_neither_stops_it_nor_its_end() {
    let broker = Broker::start();
    for damage in [Damage::Missing, Damage::Folder, Damage::Fifo, Damage::DanglingLink, Damage::Device] {
        let mut gateway = lived(&broker);
        let state = gateway.path("sandgate-state");
        for path in below(&state) {
            let is_socket = path.symlink_metadata().is_ok_and(|data| data.file_type().is_socket());
            if path.is_file() && !is_socket {
                damage.apply(&path);
            }
        }
        serves(&mut gateway, &format!("{damage:?} of all files"));
        for _ in 0..3 {
            let output = gateway.cli(&["swap", "d"]);
            assert!(output.status.success(), "{damage:?}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(gateway.cli(&["command", "d", "count"]).status.success(), "{damage:?}");
        }
        gateway.terminate();
        gateway.restart();
        until("an answer of the gateway", || {
            let is_up = gateway.device("d")["phase"] == "running";
            (is_up || !gateway.is_alive()).then_some(())
        });
    }
    // The whole folder goes. The gateway writes into it meanwhile, so that one attempt may find it not empty.
    let mut gateway = lived(&broker);
    until("the folder to be gone", || {
        let _ = fs::remove_dir_all(gateway.path("sandgate-state"));
        (!gateway.path("sandgate-state").exists()).then_some(())
    });
    serves(&mut gateway, "no folder any more");
    assert!(gateway.cli(&["swap", "d"]).status.success());
    gateway.terminate();
    gateway.restart();
    serves(&mut gateway, "a start after that");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_others_is_refused_and_stays_as_it_is() {
    let broker = Broker::start();
    let gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.configure(broker.port, DEVICE);
    let text = fs::read_to_string(gateway.path("gateway.toml")).unwrap();
    gateway.write("gateway.toml", format!("state = '.'\n{text}").as_bytes());
    for folder in ["drivers", "downloads"] {
        fs::create_dir(gateway.path(folder)).unwrap();
        for number in 0..30 {
            fs::write(gateway.path(&format!("{folder}/{number}.wasm")), "mine").unwrap();
        }
    }
    let before = below(gateway.folder.path());
    let output = gateway.cli(&["run", "gateway.toml"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("expected a new or an empty folder") && text.contains("sandgate-state"), "{text}");
    assert_eq!(below(gateway.folder.path()), before);
    let findings = gateway.json(&["run", "gateway.toml", "--check"]);
    let finding = findings.as_array().unwrap().iter().find(|finding| finding["place"] == "state").unwrap();
    assert_eq!(finding["ok"], json!(false), "{finding}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_reader_that_stalls_delays_nothing_and_what_it_missed_is_told() {
    let broker = Broker::start();
    let gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.configure(broker.port, &DEVICE.replace("= 50", "= 5"));
    let mut process = Command::new(SANDGATE)
        .args(["run", "gateway.toml"])
        .current_dir(gateway.folder.path())
        .env("SANDGATE_LOG", "debug")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Every sample is a line, and nobody reads: the pipes hold some hundreds.
    gateway.wait_for_samples("d", 1500);
    assert!(gateway.cli(&["command", "d", "count"]).status.success());
    must(Command::new("kill").arg(process.id().to_string()));
    // Nobody has read a byte until here.
    assert!(process.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_devices_run_with_a_thousand_descriptors() {
    let broker = Broker::start();
    let gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    let devices: String = (0..2000)
        .map(|n| format!("[devices.d{n}]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 60000\n"))
        .collect();
    gateway.configure(broker.port, &devices);
    let log = fs::File::create(gateway.path("log")).unwrap();
    let mut process = Command::new("sh")
        .args(["-c", &format!("ulimit -n 1024; exec {SANDGATE} run gateway.toml")])
        .current_dir(gateway.folder.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    until("all devices to run", || {
        let output = gateway.cli(&["devices", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let devices = status["devices"].as_array()?;
        let running = devices.iter().filter(|device| device["phase"] == "running").count();
        (running == 2000 && status["sessions"]["main"]["connected"] == true).then_some(())
    });
    let open = fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count();
    assert!(open < 1000, "{open} descriptors");
    must(Command::new("kill").arg(process.id().to_string()));
    assert!(process.wait().unwrap().success());
    assert!(!gateway.log().contains("Too many open files"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_that_the_gateway_is_up_answers_and_stops() {
    let broker = Broker::start();
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.configure(broker.port, "[devices.echo1]\ndriver = 'echo.wasm'\n");
    let path = gateway.path("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let wait_for = |text: &str| {
        let mut buffer = [0; 500];
        loop {
            let size = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("waited in vain for {text}: {error}"));
            if String::from_utf8_lossy(&buffer[..size]).lines().any(|line| line == text) {
                return;
            }
        }
    };
    gateway.restart_with(&[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "300000")]);
    wait_for("READY=1");
    (0..3).for_each(|_| wait_for("WATCHDOG=1"));
    gateway.terminate();
    wait_for("STOPPING=1");
}
