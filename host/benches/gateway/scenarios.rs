//! What testing a driver costs: the real process of `sandgate test`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandgate::gate::{self, Grounds};
use sandgate::sandbox::{Compiler, Sandbox};
use sandgate::tape::Tape;

use crate::print;
use crate::setup::root;

const SANDGATE: &str = env!("CARGO_BIN_EXE_sandgate");

/// A day of a meter, scenarios with warm code, exploring.
pub fn scenarios() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["power-meter-pm2100", "inverter-deye", "relay-tasmota"];
    for name in names {
        let plugin = root().join("plugins").join(name);
        let file = folder.path().join(format!("{name}.wasm"));
        let mut build = Command::new(SANDGATE);
        build.arg("build").arg(&plugin).arg("--output").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(build.status().unwrap().success());
        // So that its code is in the cache.
        run(folder.path(), name, &plugin.join("tests"), &[]);
    }
    let tests = |name: &str| root().join("plugins").join(name).join("tests");

    let meter = std::fs::read_to_string(tests("power-meter-pm2100").join("meter.test.yml")).unwrap();
    let given = meter.split("\nscenarios:\n").next().unwrap();
    let day = folder.path().join("day");
    std::fs::create_dir(&day).unwrap();
    let scenario = format!(
        "{given}\nscenarios:\n  a day:\n    - advance: 24h\n    - expect: {{ samples: {{ between: [86400, 86402] }} }}\n"
    );
    std::fs::write(day.join("day.test.yml"), scenario).unwrap();
    let took = run(folder.path(), "power-meter-pm2100", &day, &[]);
    let what = "a day of a meter at 1 Hz: 5 blocks, 16 values";
    print(what, seconds(took), "", None, ("≤ 2 s", took <= Duration::from_secs(2)));

    replayed_and_gated(folder.path(), given);

    let took = run(folder.path(), "relay-tasmota", &tests("relay-tasmota"), &[]);
    let bar = ("≤ 300 ms", took <= Duration::from_millis(300));
    print("`sandgate test` of 11 scenarios, code cached", seconds(took), "", None, bar);

    for name in names {
        let took = run(folder.path(), name, &tests(name), &["--explore", "1000"]);
        let bar = ("≤ 60 s", took <= Duration::from_secs(60));
        print(&format!("exploring {name} in 1,000 runs"), seconds(took), "", None, bar);
    }
}

/// An hour of the meter on a tape: run again, and compared with itself as before a swap.
fn replayed_and_gated(folder: &Path, given: &str) {
    let (hour, tapes) = (folder.join("hour"), folder.join("tapes"));
    std::fs::create_dir(&hour).unwrap();
    let scenario = format!("{given}\nscenarios:\n  an hour:\n    - advance: 1h\n");
    std::fs::write(hour.join("hour.test.yml"), scenario).unwrap();
    let recorded = run(folder, "power-meter-pm2100", &hour, &["--tapes", &tapes.to_string_lossy()]);
    let file = std::fs::read_dir(&tapes).unwrap().next().unwrap().unwrap().path();
    let mut replay = Command::new(SANDGATE);
    let begin = Instant::now();
    let output = replay.arg("replay").arg(&file).env("XDG_CACHE_HOME", folder.join("cache")).output().unwrap();
    let took = begin.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let ratio = recorded.as_secs_f64() / took.as_secs_f64();
    let what = "replay of an hour of the meter, vs recording it";
    print(what, seconds(took), &seconds(recorded), Some(ratio), (">= 1", ratio >= 1.0));

    let sandbox = Sandbox::new(Compiler::InProcess, Some(&folder.join("cache/sandgate"))).unwrap();
    let bytes = std::fs::read(folder.join("power-meter-pm2100.wasm")).unwrap();
    let prepare = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(sandbox.prepare(bytes.into())).unwrap()
    };
    // This thread has a runtime already.
    let driver = Arc::new(std::thread::scope(|scope| scope.spawn(prepare).join().unwrap()));
    let tape = Tape::load(&file).unwrap();
    let grounds = Grounds::of(&tape, &[&driver.manifest.driver.requests]);
    let gated = std::thread::scope(|scope| {
        let gate = || {
            let begin = Instant::now();
            let comparison = gate::compare((&driver, &driver), &tape, &grounds).unwrap();
            assert!(comparison.is_same(0.0) && comparison.samples > 3500, "{comparison}");
            begin.elapsed()
        };
        scope.spawn(gate).join().unwrap()
    });
    let what = "two versions compared on an hour of the meter, before a swap";
    print(what, seconds(gated), "", None, ("<= 1 s", gated <= Duration::from_secs(1)));
}

fn run(folder: &Path, driver: &str, tests: &Path, more: &[&str]) -> Duration {
    let begin = Instant::now();
    let mut test = Command::new(SANDGATE);
    test.arg("test").arg(folder.join(format!("{driver}.wasm"))).arg("--tests").arg(tests).args(more);
    let output = test.env("XDG_CACHE_HOME", folder.join("cache")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    begin.elapsed()
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
