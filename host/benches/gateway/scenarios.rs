//! What testing a driver costs: the real process of `sandgate test`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
    let scenario = format!("{given}\nscenarios:\n  a day:\n    - advance: 24h\n    - expect: {{ samples: 86400 }}\n");
    std::fs::write(day.join("day.test.yml"), scenario).unwrap();
    let took = run(folder.path(), "power-meter-pm2100", &day, &[]);
    let what = "a day of a meter at 1 Hz: 5 blocks, 16 values";
    print(what, seconds(took), "", None, ("≤ 2 s", took <= Duration::from_secs(2)));

    let took = run(folder.path(), "relay-tasmota", &tests("relay-tasmota"), &[]);
    let bar = ("≤ 300 ms", took <= Duration::from_millis(300));
    print("`sandgate test` of 11 scenarios, code cached", seconds(took), "", None, bar);

    for name in names {
        let took = run(folder.path(), name, &tests(name), &["--explore", "1000"]);
        let bar = ("≤ 60 s", took <= Duration::from_secs(60));
        print(&format!("exploring {name} in 1,000 runs"), seconds(took), "", None, bar);
    }
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
