//! Tapes: what crossed between a driver and the host, and the same driver run again on it.

use std::path::Path;
use std::process::{Command, Output};

use sandgate::tape::{Chunk, Kind, Tape};
use serde_json::Value as Json;

use crate::harness::{Broker, Gateway, SANDGATE, fixture, must, root, until};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Replays a tape, with a cache of compiled code beside it.
fn replay(tape: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(SANDGATE);
    command.arg("replay").arg(tape).args(arguments).env("XDG_CACHE_HOME", tape.parent().unwrap().join("cache"));
    command.output().unwrap()
}

/// Runs the scenarios of a folder and replays the tape of each; gives how long
/// each life was, in seconds.
pub fn record_and_replay(driver: &Path, tests: &Path) -> Vec<(String, f64)> {
    let folder = driver.parent().unwrap();
    let tapes = folder.join("tapes");
    let mut test = Command::new(SANDGATE);
    test.arg("test").arg(driver).arg("--tests").arg(tests).arg("--tapes").arg(&tapes);
    must(test.env("XDG_CACHE_HOME", tapes.join("cache")));
    let files = std::fs::read_dir(&tapes).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|file| file.extension().is_some_and(|end| end == "tape")).collect();
    let replayed = files.iter().map(|file| {
        let output = replay(file, &["--json"]);
        let report: Json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        assert!(output.status.success() && report["difference"].is_null(), "{}: {report:#}", file.display());
        assert!(report["calls"].as_u64().unwrap() >= 2, "{report:#}");
        (file.file_stem().unwrap().to_string_lossy().into_owned(), report["to"].as_f64().unwrap())
    });
    replayed.collect()
}

#[test]
fn scenarios_and_a_day_of_each_driver_are_the_same_when_they_are_replayed() {
    for name in ["power-meter-pm2100", "relay-tasmota", "inverter-deye"] {
        let folder = tempfile::tempdir().unwrap();
        let source = root().join("plugins").join(name);
        let driver = folder.path().join("driver.wasm");
        must(Command::new(SANDGATE).arg("build").arg(&source).arg("--output").arg(&driver));
        let tests = folder.path().join("tests");
        std::fs::create_dir(&tests).unwrap();
        let of_driver = std::fs::read_dir(source.join("tests")).unwrap().next().unwrap().unwrap().path();
        let day = format!("{}\n  a day:\n    - advance: 24h\n", std::fs::read_to_string(of_driver).unwrap().trim_end());
        std::fs::write(tests.join("a.test.yml"), day).unwrap();
        let lives = record_and_replay(&driver, &tests);
        assert!(lives.len() >= 9, "{lives:?}");
        let day = lives.iter().find(|(name, _)| name.ends_with("a-day")).unwrap();
        assert!(day.1 > 23.9 * 3600.0, "{day:?}");
        // A tape is a device: the driver does on it what it did, as a scenario says.
        let with = |part: &str| lives.iter().find(|(name, _)| name.contains(part)).unwrap().0.clone();
        for part in ["001-", "-a-silent-"] {
            let file = folder.path().join("tapes").join(format!("{}.tape", with(part)));
            let scenario = must(Command::new(SANDGATE).args(["tape", "to-scenario"]).arg(&file));
            let alone = folder.path().join(part);
            std::fs::create_dir(&alone).unwrap();
            std::fs::copy(&file, alone.join(file.file_name().unwrap())).unwrap();
            std::fs::write(alone.join("b.test.yml"), scenario).unwrap();
            must(Command::new(SANDGATE).arg("test").arg(&driver).arg("--tests").arg(&alone));
        }
        // The operator's secrets are on none of them, however they were written.
        for entry in std::fs::read_dir(folder.path().join("tapes")).unwrap() {
            let Ok(bytes) = std::fs::read(entry.unwrap().path()) else { continue };
            let tape = Tape::read(&bytes).unwrap();
            let header = serde_json::to_string(&tape.header).unwrap();
            let events: Vec<u8> = tape.chunks.iter().flat_map(|chunk| chunk.events.to_vec()).collect();
            for secret in ["p w#1", "p%20w%231"] {
                assert!(
                    !header.contains(secret) && !events.windows(secret.len()).any(|part| part == secret.as_bytes())
                );
            }
        }
    }
}

#[test]
fn a_replay_stops_at_the_first_difference_and_shows_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let driver = folder.path().join("driver.wasm");
    std::fs::write(&driver, fixture("echo")).unwrap();
    let tests = folder.path().join("tests");
    std::fs::create_dir(&tests).unwrap();
    std::fs::write(tests.join("a.test.yml"), "scenarios:\n  some time:\n    - advance: 60s\n").unwrap();
    record_and_replay(&driver, &tests);
    let path = folder.path().join("tapes/001-some-time.tape");
    let mut tape = Tape::read(&std::fs::read(&path).unwrap()).unwrap();
    // As if the driver had sent something else after half a minute.
    let half = tape.moments().filter(|moment| moment.event.kind == Kind::Import && moment.at.as_secs() == 30).last();
    let part = half.unwrap().event.bytes.to_vec();
    let mut events = tape.chunks[0].events.to_vec();
    let place = events.windows(part.len()).position(|window| window == part).unwrap() + part.len() - 1;
    events[place] ^= 1;
    tape.chunks[0] = Chunk { start: tape.chunks[0].start, events: events.into() };
    std::fs::write(&path, tape.to_bytes()).unwrap();
    let output = replay(&path, &[]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(" at 0:00:30.") && said.contains("is another one:"), "{said}");
    assert!(said.contains("  on the tape: ") && said.contains("  now:         "), "{said}");
    // Up to there it is the same, and what it has logged by then is shown.
    let output = replay(&path, &["--until", "20s", "--events"]);
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("are the same"), "{said}");
    assert!(said.contains("0:00:20.") && !said.contains("0:00:21."), "{said}");
    assert!(said.contains("call start(") || said.contains("call startContext"), "{said}");
    // A file that is cut says so; what is no tape is refused.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    assert!(text(&replay(&path, &["--until", "1s"]).stderr).contains("the file is damaged: "), "{output:?}");
    let output = replay(&driver, &[]);
    assert!(text(&output.stderr).contains("expected a tape of Sandgate"), "{output:?}");
    let other = folder.path().join("other.wasm");
    std::fs::write(&other, fixture("notes")).unwrap();
    std::fs::write(&path, tape.to_bytes()).unwrap();
    let output = replay(&path, &["--driver", &other.to_string_lossy()]);
    assert!(text(&output.stderr).contains("the tape is of echo "), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_device_gives_its_tape_and_a_dead_one_leaves_its_own() {
    let broker = Broker::start();
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("zoo.wasm", fixture("zoo"))]);
    let misdeed = |id: &str, act: &str| {
        format!(
            "[devices.{id}]\ndriver = 'zoo.wasm'\nlimits = {{ memory = '16MiB', cpu = '200ms', call = '1s' }}\n\
             grants.modbus.line = 'line'\n\
             configuration.main = {{ act = '{act}', place = 'handle-command' }}\n"
        )
    };
    // Nobody is asked anything there.
    let line = "[buses.line.modbus_tcp]\naddress = '127.0.0.1:9'\n";
    let echo = "[devices.echo]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 20\n";
    let quiet = "[devices.quiet]\ndriver = 'echo.wasm'\ntape = false\n";
    let dying = ["trap", "panic", "loop", "sleep", "memory"];
    let devices: String = dying.iter().map(|act| misdeed(&act.replace(' ', "-"), act)).collect();
    gateway.start(broker.port, &format!("{line}{echo}{quiet}{devices}"));
    gateway.wait_for_samples("echo", 20);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    // What it has done since its start.
    let said = done(&gateway, &["tape", "echo", "-o", &at("echo.tape")]);
    assert!(said.contains("calls from 0:00:00.000 to ") && said.contains("sandgate replay "), "{said}");
    let output = replay(&folder.path().join("echo.tape"), &[]);
    assert!(output.status.success() && text(&output.stdout).contains(" are the same, in "), "{output:?}");
    // A device that is not recorded is when it is asked for; afresh it can be replayed.
    let refused = gateway.cli(&["tape", "quiet"]);
    assert!(text(&refused.stderr).contains("nothing is recorded of it"), "{refused:?}");
    let middle = gateway.cli(&["record", "quiet", "--for", "100ms", "-o", &at("middle.tape")]);
    assert!(text(&middle.stdout).contains("it lacks the begin"), "{middle:?}");
    let output = replay(&folder.path().join("middle.tape"), &[]);
    assert!(text(&output.stderr).contains("has lost the begin"), "{output:?}");
    done(&gateway, &["record", "echo", "--for", "1s", "--afresh", "-o", &at("second.tape")]);
    let report = replay(&folder.path().join("second.tape"), &["--json"]);
    let report: Json = serde_json::from_slice(&report.stdout).unwrap();
    assert!(report["difference"].is_null() && report["calls"].as_u64().unwrap() >= 20, "{report:#}");
    assert_eq!(gateway.json(&["swaps", "echo"])[0]["asked_by"], "record");
    // Each dead driver has left what it did, and does it again.
    for act in dying {
        let id = act.replace(' ', "-");
        gateway.cli(&["command", &id, "act"]);
        let file = at(&format!("{id}.tape"));
        until("its post-mortem", || {
            let output = gateway.cli(&["tape", &id, "--post-mortem", "-o", &file]);
            output.status.success().then_some(())
        });
        let output = replay(Path::new(&file), &["--json"]);
        let report: Json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        let problem = report["tape"]["problem"].as_str().unwrap_or_default();
        assert!(problem.contains("handle-command"), "{act}: {report:#}");
        assert!(report["difference"].is_null() && report["death"].is_string(), "{act}: {report:#}");
        if act == "panic" {
            assert!(report["death"].as_str().unwrap().contains("zoo/acts.rs"), "{report:#}");
        }
    }
    // Another trap within a minute leaves no other one.
    gateway.cli(&["command", "trap", "act"]);
    gateway.kill();
    let kept = std::fs::read_dir(gateway.path("sandgate-state/post-mortems/trap")).unwrap().count();
    assert_eq!(kept, 1);
}

/// Runs a command of the program beside the gateway, which has to succeed.
fn done(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = gateway.cli(arguments);
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}
