//! What drivers in each language cost in `sandgate run` itself, beside mosquitto.
//! The tools of each are installed into `target/tools` when they are missing.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::print;
use crate::through_broker::mosquitto;
use crate::through_process::{first_samples, observer, run, sample, samples_for, stop};

const DEVICES: usize = 20;
const LUA_DEVICES: usize = 200;
const METERS: usize = 50;

/// The largest part of the time after a save that is not its own: a period of the script.
const PERIOD_MS: u64 = 5;

/// Memory of devices in each language, and the time from a save of a script to its swap.
pub async fn languages() {
    let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    for (language, most) in [("rust", 5.0), ("typescript", 30.0), ("python", 60.0)] {
        let folder = tempfile::tempdir().unwrap();
        let driver = new_driver(folder.path(), language);
        let (one, many) = (memory(folder.path(), &driver, 1).await, memory(folder.path(), &driver, DEVICES).await);
        let what = format!("memory of {DEVICES} devices in {language}, above a gateway without, vs 1");
        let bar = format!("<= {most:.0} MiB");
        print(&what, format!("{:.1} MiB", mib(many)), &format!("{:.1} MiB", mib(one)), None, (&bar, mib(many) <= most));
    }
    let folder = tempfile::tempdir().unwrap();
    script(folder.path(), 1000, 1);
    let (one, many) = (memory(folder.path(), "script", 1).await, memory(folder.path(), "script", LUA_DEVICES).await);
    let each = many.saturating_sub(one) as f64 / (LUA_DEVICES - 1) as f64 / 1024.0;
    print(
        "memory of each Lua device at 1 Hz, beyond the first",
        format!("{each:.0} KiB"),
        &format!("{:.1} MiB", mib(one)),
        None,
        ("<= 280 KiB", each <= 280.0),
    );
    let (rust, map) = (poll("rust").await, poll("map").await);
    let times = map.as_secs_f64() / rust.as_secs_f64();
    print(
        "processor time of a poll of the PM2100 as a map, vs in Rust",
        format!("{:.0} µs", map.as_secs_f64() * 1e6),
        &format!("{:.0} µs", rust.as_secs_f64() * 1e6),
        Some(times),
        ("<= 2 times", times <= 2.0),
    );
    let save = save(folder.path()).await;
    print(
        "save of a Lua script to the first sample of the new one",
        format!("{:.0} ms", save.as_secs_f64() * 1e3),
        "",
        None,
        ("<= 50 ms", save <= Duration::from_millis(50)),
    );
}

fn sandgate(folder: &Path, arguments: &[&str]) {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let mut program = Command::new(env!("CARGO_BIN_EXE_sandgate"));
    let output = program.args(arguments).current_dir(folder).env("XDG_CACHE_HOME", tools).stdin(Stdio::null()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A driver as `sandgate new` makes it: a sample each second.
fn new_driver(folder: &Path, language: &str) -> String {
    sandgate(folder, &["new", "sensor", "--lang", language]);
    sandgate(folder, &["build", "sensor", "--output", "sensor.wasm"]);
    "sensor.wasm".into()
}

/// A blueprint that sends a value every so often.
fn script(folder: &Path, period_ms: u64, value: u64) {
    let own = folder.join("script");
    std::fs::create_dir_all(&own).unwrap();
    let manifest = "{blueprint_spec: device/3.0, display_name: X, runtime: {type: lua, options: {file: main.lua}}, \
                    telemetry: {value: {type: integer, display_name: V}}}";
    std::fs::write(own.join("manifest.yml"), manifest).unwrap();
    let main = format!(
        "function enapter.main() scheduler.add({period_ms}, function() enapter.send_telemetry({{ value = {value} }}) end) end"
    );
    std::fs::write(own.join("main.lua"), main).unwrap();
}

/// A device on Modbus TCP that shows 230.1 everywhere.
async fn device() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 12];
                while stream.read_exact(&mut request).await.is_ok() {
                    let registers = request[11];
                    let values = [0x43, 0x66, 0x19, 0x9a].repeat(usize::from(registers) / 2);
                    let head = [0, registers * 2 + 3, request[6], request[7], registers * 2];
                    stream.write_all(&[&request[..4], &head, &values].concat()).await.unwrap();
                }
            });
        }
    });
    port
}

/// What the processor does for a poll of the PM2100, of five requests, all of the gateway's work included.
async fn poll(how: &str) -> Duration {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let plugin = root.join("plugins/power-meter-pm2100");
    match how {
        "map" => {
            let manifest = std::fs::read_to_string(plugin.join("manifest.yml")).unwrap();
            let map = std::fs::read_to_string(root.join("tests/fixtures/maps/pm2100.yml")).unwrap();
            std::fs::create_dir(folder.path().join("meter")).unwrap();
            std::fs::write(folder.path().join("meter/manifest.yml"), format!("{manifest}\n{map}")).unwrap();
        }
        _ => sandgate(folder.path(), &["build", plugin.to_str().unwrap(), "--output", "meter"]),
    }
    let broker = mosquitto(folder.path());
    let mut observer = observer(broker.1).await;
    let mut text = format!(
        "[sessions.main.enapter]\nhost = '127.0.0.1'\nport = {}\nhardware_id = 'S01'\n\
         [buses.field.modbus_tcp]\naddress = '127.0.0.1:{}'\n",
        broker.1,
        device().await
    );
    for number in 0..METERS {
        let configuration = "configuration.connection = { unit = 1, poll_ms = 200 }";
        write!(text, "[devices.d{number}]\ndriver = 'meter'\n{configuration}\ngrants.modbus.line = 'field'\n").unwrap();
    }
    std::fs::write(folder.path().join("gateway.toml"), text).unwrap();
    let mut process = run(folder.path());
    first_samples(&mut observer, METERS).await;
    // Starts and what they compile are over.
    samples_for(&mut observer, Duration::from_secs(3)).await;
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = [11, 12].iter().map(|place| fields[*place].parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    };
    let before = used();
    let polls = samples_for(&mut observer, Duration::from_secs(20)).await;
    let each = (used() - before).div_f64(polls as f64);
    stop(&mut process);
    each
}

fn configure(folder: &Path, port: u16, driver: &str, devices: usize) {
    let mut text = format!("[sessions.main.enapter]\nhost = '127.0.0.1'\nport = {port}\nhardware_id = 'S01'\n");
    for number in 0..devices {
        write!(text, "[devices.d{number}]\ndriver = '{driver}'\nlimits.telemetry = '1000/s'\n").unwrap();
    }
    std::fs::write(folder.join("gateway.toml"), text).unwrap();
}

/// Bytes of devices beyond those of a gateway without, with a warm cache; what several
/// of them share counts once.
async fn memory(folder: &Path, driver: &str, devices: usize) -> u64 {
    let broker = mosquitto(folder);
    let mut observer = observer(broker.1).await;
    let mut of = async |devices: usize| {
        configure(folder, broker.1, driver, devices);
        let mut process = run(folder);
        if devices == 0 {
            tokio::time::sleep(Duration::from_secs(2)).await;
        } else {
            first_samples(&mut observer, devices).await;
            samples_for(&mut observer, Duration::from_secs(10)).await;
        }
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", process.0.id())).unwrap();
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        let memory = pss.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
        stop(&mut process);
        memory
    };
    // The first start compiles.
    of(1).await;
    let empty = of(0).await;
    of(devices).await.saturating_sub(empty)
}

/// From the save of a script to the first sample of the new one; the middle of nine.
async fn save(folder: &Path) -> Duration {
    let broker = mosquitto(folder);
    let mut observer = observer(broker.1).await;
    script(folder, PERIOD_MS, 1);
    configure(folder, broker.1, "script", 1);
    let mut process = run(folder);
    first_samples(&mut observer, 1).await;
    let mut times = Vec::new();
    for value in 2..=10 {
        // Versions that follow at once would be one save.
        samples_for(&mut observer, Duration::from_secs(1)).await;
        let begin = Instant::now();
        script(folder, PERIOD_MS, value);
        let wanted = format!("\"value\":{value}");
        while !String::from_utf8_lossy(&sample(&mut observer).await.1).contains(&wanted) {}
        times.push(begin.elapsed());
    }
    stop(&mut process);
    times.sort_unstable();
    times[times.len() / 2]
}
