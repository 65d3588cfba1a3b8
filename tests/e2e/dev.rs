//! `sandgate dev`: a driver that is swapped, tested, broken and repaired while it is written.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use sandgate_test_needs::needs;
use serde_json::{Value as Json, json};

use crate::harness::{Ended, SANDGATE, must, root, until};
use crate::scenarios::plugin;

/// One that runs, with what it has said.
struct Dev {
    child: Ended,
    steps: ChildStdin,
    said: Arc<Mutex<String>>,
    /// Up to where it was read.
    read: usize,
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("it has said:\n{}", self.said.lock().unwrap());
        }
    }
}

impl Dev {
    fn start(folder: &Path, arguments: &[&str]) -> Dev {
        let mut command = Command::new(SANDGATE);
        command
            .arg("dev")
            .args(arguments)
            .arg("--plain")
            .current_dir(folder)
            .env("XDG_CACHE_HOME", folder.join("cache"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let mut said = said.lock().unwrap();
                    said.push_str(&line);
                    said.push('\n');
                }
            });
        }
        let steps = child.stdin.take().unwrap();
        Dev { child: Ended(child), steps, said, read: 0 }
    }

    fn play(&mut self, step: &str) {
        writeln!(self.steps, "{step}").unwrap();
    }

    /// Waits for a text, after those before.
    fn hear(&mut self, text: &str) {
        let found = until(&format!("{text:?}"), || {
            let said = self.said.lock().unwrap();
            Some(self.read + said.get(self.read..)?.find(text)?)
        });
        self.read = found + text.len();
    }

    /// Waits until a text was said at any time.
    fn has_said(&self, text: &str) {
        until(&format!("{text:?}"), || self.said.lock().unwrap().contains(text).then_some(()));
    }

    fn quit(mut self) {
        self.play("quit");
        assert!(self.child.0.wait().unwrap().success());
    }
}

#[test]
fn a_driver_at_work_is_broken_repaired_swapped_and_tested() {
    let folder = plugin("relay-tasmota");
    let mut dev = Dev::start(folder.path(), &["driver.wasm"]);
    dev.hear("simulated devices: 192.168.1.50:80");
    dev.has_said("scenarios passed");
    dev.has_said("INFO started device=\"relay_tasmota\"");
    dev.play("command: { name: turn_on }");
    dev.hear("turn_on: done");
    dev.play("break: { \"192.168.1.50:80\": refuses }");
    dev.hear("the device cannot be read");
    dev.play("repair: \"192.168.1.50:80\"");
    dev.hear("the device answers again");
    // What it says to ask the cloud is an answer.
    let said = dev.said.lock().unwrap().clone();
    let hint = said.lines().find_map(|line| line.strip_prefix("to ask the cloud: sandgate ")).unwrap();
    let samples = must(Command::new(SANDGATE).args(hint.split(' ').filter(|word| *word != "-f")));
    assert!(samples.contains("status"), "{samples}");
    // What cannot be is said, and nothing is done.
    dev.play("break: { lamp: timeout }");
    dev.hear("error: no device \"lamp\" is given");
    dev.play("advance: 5s");
    dev.hear("time goes by itself");
    // The gateway gets other settings as from an operator.
    dev.play("configure: { configuration: { connection: { poll_ms: 500 } } }");
    dev.hear("configuration applied");
    // A scenario that no longer holds.
    let file = folder.path().join("tests/relay.test.yml");
    let scenarios = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, scenarios.replace("voltage: 231\n", "voltage: 400\n")).unwrap();
    dev.hear("FAILED state, energy and who it is");
    dev.hear("telemetry.voltage: expected 400, found 231");
    std::fs::write(&file, scenarios).unwrap();
    dev.hear("scenarios passed");
    // A new version takes over, tried on what this one did.
    let manifest = std::fs::read_to_string(root().join("plugins/relay-tasmota/manifest.yml")).unwrap();
    std::fs::write(folder.path().join("manifest.yml"), manifest.replace("version: 1.0.0", "version: 9.0.0")).unwrap();
    let new = folder.path().join("driver.wasm");
    must(Command::new(SANDGATE).arg("build").arg("--component").arg(&new).arg(folder.path()).arg("-o").arg(&new));
    dev.hear("swapped relay-tasmota 1.0.0");
    dev.hear("for relay-tasmota 9.0.0");
    dev.hear("samples equal");
    dev.quit();
    // The folder is where it should be, and no concern of Git's.
    assert_eq!(std::fs::read_to_string(folder.path().join(".sandgate-dev/.gitignore")).unwrap(), "*\n");
}

#[test]
fn a_save_is_built_and_swapped_in_and_what_cannot_be_built_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    must(Command::new(SANDGATE).args(["new", "my-sensor"]).current_dir(folder.path()));
    let mut dev = Dev::start(folder.path(), &["my-sensor"]);
    dev.hear("my-sensor 0.1.0 runs as device my_sensor");
    dev.hear("3 scenarios passed");
    let source = folder.path().join("my-sensor/src/lib.rs");
    let text = std::fs::read_to_string(&source).unwrap();
    std::fs::write(&source, text.replace("+= 0.1", "+= nonsense")).unwrap();
    dev.hear("NOT BUILT");
    dev.hear("cannot find value `nonsense`");
    std::fs::write(&source, text.replace("+= 0.1", "+= 0.2")).unwrap();
    dev.hear("built in");
    dev.hear("swapped my-sensor 0.1.0");
    // What the new version declares is known to the cloud, and named by the scenarios.
    let manifest = folder.path().join("my-sensor/manifest.yml");
    let declared = std::fs::read_to_string(&manifest).unwrap();
    let humidity = "telemetry:\n  humidity:\n    type: float\n    display_name: Humidity\n";
    std::fs::write(&manifest, declared.replace("telemetry:\n", humidity).replace("0.1.0", "0.2.0")).unwrap();
    std::fs::write(&source, text.replace("(\"temperature\", temp", "(\"humidity\", 50.0).with(\"temperature\", temp"))
        .unwrap();
    dev.hear("for my-sensor 0.2.0");
    dev.hear("humidity=50.0");
    let said = dev.said.lock().unwrap().clone();
    assert!(!said.contains("WARN the cloud:"), "{said}");
    // A parameter without which neither the old nor the new version takes a configuration.
    let scenarios = folder.path().join("my-sensor/tests/begin.test.yml");
    let given = std::fs::read_to_string(&scenarios).unwrap();
    std::fs::write(&scenarios, given.replacen("{ interval_s: 1 }", "{ interval_s: 1, place: roof }", 1)).unwrap();
    let declared = std::fs::read_to_string(&manifest).unwrap();
    let place =
        "parameters:\n      place:\n        type: string\n        display_name: Place\n        required: true\n";
    std::fs::write(&manifest, declared.replace("parameters:\n", place).replace("0.2.0", "0.3.0")).unwrap();
    dev.hear("INFO started device=\"my_sensor\" driver=\"my-sensor 0.3.0\"");
    dev.hear("my_sensor running humidity=50.0");
    // Another name is another device.
    let declared = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, declared.replace("name: my-sensor\n", "name: your-sensor\n")).unwrap();
    dev.hear("error: the driver is called your-sensor now; start `sandgate dev` again");
    dev.quit();
    // What is wrong at the start is told, and can be mended.
    std::fs::remove_file(folder.path().join("my-sensor/my-sensor.wasm")).unwrap();
    std::fs::write(&manifest, declared).unwrap();
    std::fs::write(&scenarios, given.replacen("{ interval_s: 1 }", "{ interval: 1 }", 1)).unwrap();
    let mut dev = Dev::start(folder.path(), &["my-sensor"]);
    dev.hear("error: my-sensor/tests/begin.test.yml:1: given: given.configuration.main.interval: is not declared");
    std::fs::write(&scenarios, given.replacen("{ interval_s: 1 }", "{ interval_s: 1, place: roof }", 1)).unwrap();
    dev.hear("INFO started device=\"my_sensor\"");
    dev.quit();
}

/// With all that gold asks for: a second build in another place is the longest of it.
#[test]
fn a_driver_is_as_good_as_its_evidence_says() {
    let driver = root().join("plugins/relay-tasmota");
    let check = |path: &Path, arguments: &[&str]| {
        let mut command = Command::new(SANDGATE);
        command.arg("check").arg(path).args(["--scale", "--runs", "20", "--json"]).args(arguments);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let report: Json = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.success(), report)
    };
    let (is_good, report) = check(&driver, &["--at-least", "gold"]);
    assert!(is_good && report["tier"] == "gold", "{report:#}");
    assert_eq!((&report["licence"], &report["explored"]), (&json!("Apache-2.0"), &json!(20)));
    let packages: Vec<&str> =
        report["dependencies"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    assert!(packages.contains(&"sandgate-driver") && packages.contains(&"serde_json"), "{packages:?}");
    // The same component with one scenario, and nothing beside it.
    let folder = plugin("relay-tasmota");
    let tests = folder.path().join("tests/relay.test.yml");
    let text = std::fs::read_to_string(&tests).unwrap();
    let begin = text.find("  switched on and off:").unwrap();
    std::fs::write(&tests, &text[..begin]).unwrap();
    let (is_good, report) = check(&folder.path().join("driver.wasm"), &["--at-least", "bronze"]);
    let verdict = |rule: &str| {
        let rules = report["rules"].as_array().unwrap();
        let found = rules.iter().find(|one| one["rule"] == rule).unwrap();
        (found["verdict"].as_str().unwrap().to_owned(), found["evidence"].as_str().unwrap().to_owned())
    };
    assert!(!is_good && report["tier"].is_null(), "{report:#}");
    assert_eq!(verdict("commands"), ("fails".into(), "0 of 3, not status, turn_off, turn_on".into()));
    assert_eq!(verdict("readme").1, "there is no README.md beside it");
    assert_eq!(verdict("loss").1, "no scenario breaks and repairs 192.168.1.50:80");
    assert_eq!(verdict("swap").1, "no scenario has the step `swap: {}`");
    assert_eq!(verdict("reproducible").1, "there is no source here that `sandgate build` builds");
    assert_eq!(verdict("tested"), ("holds".into(), "1 scenario passed".into()));
    assert_eq!(verdict("licence"), ("holds".into(), "Apache-2.0".into()));
}

/// The live view on a terminal of its own, which `script` lends.
#[needs("script")]
#[test]
fn its_view_takes_keys_and_leaves_the_terminal_as_it_was() {
    let folder = plugin("relay-tasmota");
    let command = format!("stty rows 40 cols 140; {SANDGATE} dev driver.wasm");
    let mut dev = Command::new("script");
    dev.args(["--quiet", "--return", "--flush", "--command", &command, "screen"]);
    dev.current_dir(folder.path()).env("TERM", "xterm").env("XDG_CACHE_HOME", folder.path().join("cache"));
    let mut dev = Ended(dev.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    let mut keys = dev.0.stdin.take().unwrap();
    let screen =
        || String::from_utf8_lossy(&std::fs::read(folder.path().join("screen")).unwrap_or_default()).into_owned();
    let shown = |text: &str| until(&format!("{text:?} on the screen"), || screen().contains(text).then_some(()));
    for text in ["\u{1b}[?1049h", "energy_total", "192.168.1.50:80 (http) is fine"] {
        shown(text);
    }
    // The menu of faults, and the fifth of them; only what changes is drawn.
    keys.write_all(b"b5").unwrap();
    shown("refuses");
    shown("conn_error");
    keys.write_all(b"q").unwrap();
    assert!(dev.0.wait().unwrap().success());
    assert!(screen().contains("\u{1b}[?1049l"), "the screen before is shown again");
}
