//! `sandgate test`: scenarios of drivers, what it says when one fails, and exploring.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value as Json, json};

use crate::harness::{SANDGATE, fixture, fixture_with, must, root};

/// Runs `sandgate test`, with a cache of compiled code of its own.
fn test(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(SANDGATE);
    command.arg("test").args(arguments).current_dir(folder).env("XDG_CACHE_HOME", folder.join("cache"));
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with a driver and scenarios.
fn folder(driver: &[u8], scenarios: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("driver.wasm"), driver).unwrap();
    std::fs::create_dir(folder.path().join("tests")).unwrap();
    std::fs::write(folder.path().join("tests/a.test.yml"), scenarios).unwrap();
    folder
}

/// A driver of plugins/ with its scenarios.
pub fn plugin(name: &str) -> tempfile::TempDir {
    let folder = folder(&[], "");
    let source = root().join("plugins").join(name);
    let file = folder.path().join("driver.wasm");
    must(Command::new(SANDGATE).arg("build").arg(&source).arg("--output").arg(&file));
    std::fs::remove_file(folder.path().join("tests/a.test.yml")).unwrap();
    for entry in std::fs::read_dir(source.join("tests")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join("tests").join(entry.file_name())).unwrap();
    }
    folder
}

fn json_of(output: &Output) -> Json {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}{}", text(&output.stdout), text(&output.stderr)))
}

/// Captures of tcpdump and dumpcap, with the meter of tests/servers on the other side.
#[test]
fn a_capture_of_modbus_tcp_is_a_device() {
    let folder = plugin("power-meter-pm2100");
    let captures = root().join("tests/fixtures").join("captures");
    let tests = captures.to_str().unwrap();
    let output = test(folder.path(), &["driver.wasm", "--tests", tests, "--explore", "20"]);
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("3 scenarios passed"), "{said}{}", text(&output.stderr));
    // What is no capture, what is not there, what would have to be named.
    let scenario = |capture: &str| {
        let lines = format!(
            "given: {{ configuration: {{ connection: {{ unit: 1 }} }}, devices: {{ line: {{ capture: {capture} }} }} }}\nscenarios:\n  one:\n    - advance: 1s\n"
        );
        std::fs::write(folder.path().join("tests/meter.test.yml"), lines).unwrap();
        let output = test(folder.path(), &["driver.wasm"]);
        assert!(!output.status.success());
        text(&output.stderr)
    };
    std::fs::copy(captures.join("meter.pcap"), folder.path().join("tests/meter.pcap")).unwrap();
    for (capture, expected) in [
        ("nothing.pcap", "given.devices.line: ./tests/nothing.pcap: there is no such file"),
        ("meter.test.yml", "meter.test.yml: expected a capture (.pcap or .pcapng)"),
        ("{ file: meter.pcap, server: \"10.0.0.1:502\" }", "expected a device \"10.0.0.1:502\", found 127.0.0.1:"),
        ("{ files: meter.pcap }", "unknown word \"files\"; did you mean \"file\"?"),
    ] {
        let error = scenario(capture);
        assert!(error.contains(expected), "{capture}: {error}");
    }
}

#[test]
fn the_three_drivers_pass_their_scenarios_and_exploring_finds_nothing() {
    for name in ["power-meter-pm2100", "relay-tasmota", "inverter-deye"] {
        let folder = plugin(name);
        let output = test(folder.path(), &["driver.wasm", "--json", "--explore", "100"]);
        let report = json_of(&output);
        assert!(output.status.success() && report["finding"].is_null(), "{report:#}");
        assert!(report["scenarios"].as_array().unwrap().len() >= 8, "{report:#}");
        for section in ["properties", "commands"] {
            let coverage = &report["coverage"][section];
            assert!(coverage.is_null() || coverage["missing"] == json!([]), "{name}: {coverage}");
        }
    }
    // The example in the README is one of them.
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let example = readme.split("```yaml\n").find(|text| text.starts_with("given:")).unwrap();
    let example = example.split("```").next().unwrap();
    let folder = plugin("relay-tasmota");
    std::fs::write(folder.path().join("tests/readme.test.yml"), example).unwrap();
    let output = test(folder.path(), &["driver.wasm", "silent relay is told once"]);
    assert!(output.status.success() && text(&output.stdout).contains("\n1 scenario passed in "), "{output:?}");
}

#[test]
fn every_kind_of_step_and_expectation_does_what_it_says() {
    let scenarios = r#"
given:
  time: 2026-03-29T00:59:58Z
  configuration: { main: { label: one } }
scenarios:
  all:
    - advance: 3s
    - expect:
        telemetry: { count: 3, half: 1.5, on: true, label: one }
        properties: { model: echo }
        samples: 3
        alerts: []
        log: ["info: starting for device from 0 because of *", { like: "started", times: 1 }]
        no_log: ["warning: *"]
        phase: running
        version: 1.0.0
        storage: { last: { absent: true } }
    - command: { name: echo, arguments: { text: hi }, result: { text: hi, number: 7 } }
    - command: { name: echo, error: "invalid-argument: text: *" }
    - command: { name: refuse, error: "busy: not today" }
    - command: { name: flush }
    - command: { name: store }
    - expect: { storage: { last: command-5 } }
    - command: { name: alert }
    - expect: { alerts: [hot] }
    - configure: { configuration: { main: { label: two } } }
    - configure: { configuration: { main: { label: reject } }, rejected: "*this label is not allowed" }
    - configure: { configuration: { main: { labels: x } }, rejected: "configuration.main.labels: *did you mean*" }
    - advance: 1s
    - expect: { telemetry: { label: two, count: 4 } }
    - swap: { driver: ../newer.wasm }
    - advance: 2s
    - expect: { version: 1.1.0, telemetry: { count: 6, label: two } }
    - expect: { telemetry: { later: { absent: true } } }
    - swap: { driver: ../newest.wasm, rejected: "*no such bucket*" }
    - restart
    - lose: storage
    - advance: 1s
    - expect: { telemetry: { count: 1 }, storage: { last: { absent: true } }, version: 1.1.0 }
  afresh:
    - given: { configuration: { main: { interval_ms: 10000, label: three } } }
    - advance: 1m
    - expect: { samples: 6, telemetry: { label: { like: "t*ee" }, count: { near: 7, within: 1 } } }
"#;
    let folder = folder(&fixture("echo"), scenarios);
    let newest = fixture_with("echo", "configuration:\n  main:", "configuration:\n  other:");
    std::fs::write(folder.path().join("newer.wasm"), fixture_with("echo", "version: 1.0.0", "version: 1.1.0")).unwrap();
    std::fs::write(folder.path().join("newest.wasm"), newest).unwrap();
    let output = test(folder.path(), &["driver.wasm"]);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let lines = text(&output.stdout);
    assert!(lines.starts_with("ok      a.test.yml: all ("), "{lines}");
    assert!(lines.contains("\nseen of the manifest:\n  telemetry     4 of 4\n"), "{lines}");
    assert!(lines.contains("commands      5 of 6, not count\n"), "{lines}");
    // The same again, from the cache: nothing depends on the machine's clock.
    let again = test(folder.path(), &["driver.wasm", "afresh", "--json"]);
    let report = json_of(&again);
    assert_eq!(
        (&report["scenarios"][0]["name"], &report["scenarios"][0]["simulated_ms"]),
        (&json!("afresh"), &json!(60_001))
    );
}

/// What is given for a scenario is laid over what is given for its file, address by address, and
/// units and routes are told apart.
#[test]
fn simulated_devices_hold_what_is_written_and_break_as_they_are_told() {
    let folder = plugin("power-meter-pm2100");
    let own = "scenarios:\n  laid over:\n    - given:\n        devices: { line: { modbus: { 1: { holding: { 2999: f32 9 } }, \
               2: { holding: { 0: 1 } } } } }\n    - advance: 1s\n    - expect: { telemetry: { ac_l1_current: 9, \
               ac_l2_current: 3.5, ac_l3_current: 2.25 } }\n    - break: { line/1: timeout, line/2: timeout }\n    \
               - advance: 5s\n    - expect: { telemetry: { status: conn_error } }\n    - repair: line/1\n    \
               - advance: 1m\n    - expect: { telemetry: { status: ok } }\n";
    let file = folder.path().join("tests/meter.test.yml");
    let given = std::fs::read_to_string(&file).unwrap().split("scenarios:\n").next().unwrap().to_owned();
    std::fs::write(file, given + own).unwrap();
    let output = test(folder.path(), &["driver.wasm"]);
    assert!(output.status.success(), "{}", text(&output.stdout));
    let folder = plugin("relay-tasmota");
    let own = "given:\n  configuration: { connection: { url: 'http://a' } }\n  devices:\n    'a:80':\n      http:\n        \
               routes:\n          GET /cm?cmnd=Status%2011: [{ json: { StatusSTS: { POWER: 'OFF' } } }, { json: { \
               StatusSTS: { POWER: 'ON' } } }]\n          GET /cm?*: { json: {} }\nscenarios:\n  in turn:\n    - advance: 1s\n    \
               - expect: { telemetry: { status: 'off' } }\n    - advance: 10s\n    - expect: { telemetry: { status: 'on' } }\n    \
               - change: { 'a:80': { http: { routes: { GET /cm?cmnd=Power%20On: { json: { POWER: 'ON' } } } } } }\n    \
               - command: { name: turn_on, result: { state: 'on' } }\n";
    std::fs::write(folder.path().join("tests/relay.test.yml"), own).unwrap();
    let output = test(folder.path(), &["driver.wasm"]);
    assert!(output.status.success(), "{}", text(&output.stdout));
}

#[test]
fn what_is_not_as_expected_is_shown_with_its_line_and_what_had_happened() {
    let scenarios = "scenarios:\n  good:\n    - advance: 1s\n    - expect: { samples: 1 }\n  bad:\n    - advance: 2s\n    \
                     - expect:\n        telemetry: { count: 3, on: <any> }\n        alerts: [hot]\n";
    let folder = folder(&fixture("echo"), scenarios);
    let output = test(folder.path(), &["driver.wasm", "--junit", "junit.xml"]);
    let lines = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{lines}");
    for expected in [
        "ok      a.test.yml: good (1s in ",
        "FAILED  a.test.yml: bad\n        ./tests/a.test.yml:7:\n",
        "          telemetry.count: expected 3, found 2\n",
        "          telemetry.on: expected \"<any>\", found true\n",
        "          alerts: expected [hot], found []\n",
        "        what had happened, newest last:\n",
        "          0:00:00.001  -- advance 2s\n",
        "          0:00:02.000  sample count=2 half=1\n",
        "\n1 scenario failed, 1 passed in ",
    ] {
        assert!(lines.contains(expected), "{expected:?} in\n{lines}");
    }
    let junit = std::fs::read_to_string(folder.path().join("junit.xml")).unwrap();
    assert!(
        junit.contains("tests=\"2\" failures=\"1\"") && junit.contains("expected &quot;&lt;any&gt;&quot;"),
        "{junit}"
    );
    let report = json_of(&test(folder.path(), &["driver.wasm", "bad", "--json"]));
    assert_eq!(report["scenarios"][0]["failure"]["line"], 7);
}

#[test]
fn mistakes_in_a_file_are_errors_with_their_line_and_what_to_do() {
    let begin = "scenarios:\n  a:\n    - advance: 1s\n";
    for (rest, expected) in [
        (
            "    - expect: { telemetry: { cuont: 1 } }\n",
            "a.test.yml:4: a: the manifest declares no telemetry \"cuont\"; did you mean \"count\"?",
        ),
        (
            "    - expect: { alerts: [cold] }\n",
            "a.test.yml:4: a: the manifest declares no alert \"cold\"; expected one of \"hot\"",
        ),
        ("    - expect: {}\n", "a.test.yml:4: a: expect: expected something to look at"),
        ("    - command: { name: eco }\n", "a.test.yml:4: a: no command \"eco\"; did you mean \"echo\"?"),
        (
            "    - advance: 5\n",
            "a.test.yml:4:16: expected a time above zero with a unit such as \"5s\" or \"500ms\", found 5",
        ),
        (
            "    - expect: { telemetri: {} }\n",
            "a.test.yml:4:17: unknown word \"telemetri\"; did you mean \"telemetry\"?",
        ),
        ("    - wait: 5s\n", "a.test.yml:4:7: unknown word \"wait\"; expected one of \"given\", \"advance\""),
        ("    - restrat\n", "a.test.yml:4:7: unknown word \"restrat\"; did you mean \"restart\"?"),
        ("    - break: { line: timeout }\n", "a.test.yml:4: a: no device \"line\" is given; there are none"),
        ("    - given: {}\n", "a.test.yml:4: a: `given` stands in the first place only"),
        (
            "    - command: { name: echo, arguments: { txt: a } }\n",
            "a.test.yml:4: a: txt: is not declared; did you mean \"text\"?",
        ),
        (
            "    - configure: { configuration: { main: { labels: x } } }\n",
            "a.test.yml:4: a: configuration.main.labels: is not declared; did you mean \"label\"?",
        ),
        (
            "  b:\n    - given: { configuration: { mains: {} } }\n    - advance: 1s\n",
            "a.test.yml:5: b: given.configuration.mains: the manifest declares no such bucket; did you mean \"main\"?",
        ),
        (
            "  b:\n    - given: { devices: { \"a:1\": { tcp: { answers: { \"\": x } } } } }\n    - advance: 1s\n",
            "a.test.yml:5: b: devices.a:1: expected something that is said before each answer",
        ),
        (
            "  b:\n    - given: { devices: { \"a:1\": { tcp: {} } } }\n    - break: { \"a:1\": exception 2 }\n",
            "a.test.yml:6: b: a:1: a device on tcp cannot have this fault",
        ),
        (
            "given:\n  configuration: { mains: {} }\n",
            "a.test.yml:1: a: given.configuration.mains: the manifest declares no such bucket; did you mean \"main\"?",
        ),
        (
            "given:\n  devices: { line: { modbus: {} } }\n",
            "a.test.yml:1: a: devices.line: the driver requests no Modbus line of this name; there are none",
        ),
    ] {
        let folder = folder(&fixture("echo"), &format!("{begin}{rest}"));
        let output = test(folder.path(), &["driver.wasm"]);
        let error = text(&output.stderr);
        assert!(output.status.code() == Some(1) && error.contains(expected), "{rest}: {expected:?} in\n{error}");
    }
    let folder = folder(&fixture("echo"), begin);
    let error = text(&test(folder.path(), &["driver.wasm", "nothing"]).stderr);
    assert_eq!(error, "error: no scenario has nothing in its name; there are a\n");
    std::fs::remove_file(folder.path().join("tests/a.test.yml")).unwrap();
    let error = text(&test(folder.path(), &["driver.wasm"]).stderr);
    assert_eq!(error, "error: ./tests: expected files such as begin.test.yml, found none\n");
}

/// What exploring finds is a scenario that fails.
#[test]
fn exploring_finds_what_breaks_a_rule_and_gives_it_as_a_scenario() {
    let given = "given:\n  configuration: { main: { act: ACT } }\n";
    let scenarios = format!("{given}scenarios:\n  it runs:\n    - advance: 1s\n    - expect: {{ phase: running }}\n");
    let folder = folder(&fixture("hostile"), &scenarios.replace("ACT", "trap in handle-command"));
    let output = test(folder.path(), &["driver.wasm", "--explore", "200", "--json"]);
    let finding = json_of(&output)["finding"].clone();
    assert_eq!(output.status.code(), Some(1), "{finding:#}");
    assert_eq!(finding["rule"], "the driver does not crash and keeps its limits");
    assert!(finding["found"].as_str().unwrap().contains("trapped in handle-command"), "{finding:#}");
    let steps: Vec<&str> = finding["steps"].as_array().unwrap().iter().filter_map(Json::as_str).collect();
    assert!(steps.len() <= 2 && steps[0].starts_with("- {\"command\":"), "{steps:?}");
    // Kept, it fails.
    let kept: String = steps.iter().map(|step| format!("    {step}\n")).collect();
    let kept = scenarios.replace("ACT", "trap in handle-command") + "  found:\n" + &kept;
    std::fs::write(folder.path().join("tests/a.test.yml"), kept).unwrap();
    let output = test(folder.path(), &["driver.wasm"]);
    assert!(text(&output.stdout).contains("1 scenario failed, 1 passed"), "{}", text(&output.stdout));
}
