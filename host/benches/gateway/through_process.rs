//! Measurements of `sandgate run` itself, beside mosquitto: starts, memory, work
//! and changes of a site with many devices.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, Event, EventLoop, Packet, QoS};

use crate::print;
use crate::setup::guest;
use crate::through_broker::{Mosquitto, mosquitto, options};

const MANY: usize = 10_000;
const FEW: usize = 1_000;

/// Starts, memory, processor time, one change and the stop of 10,000 devices.
pub async fn scale() {
    let few = Site::new(FEW).measured().await;
    let many = Site::new(MANY).measured().await;
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    let ratio = many.start.as_secs_f64() / few.start.as_secs_f64();
    print(
        "start of 10,000 devices, first sample of each, vs 1,000",
        seconds(many.start),
        &seconds(few.start),
        Some(ratio),
        ("<= 10 s, <= 12", many.start <= Duration::from_secs(10) && ratio <= 12.0),
    );
    let kib = |measured: &Measured, devices: usize| measured.memory as f64 / devices as f64 / 1024.0;
    let show = |kib: f64| format!("{kib:.1} KiB");
    print(
        "resident memory of each of 10,000 at 1 Hz, vs 1,000",
        show(kib(&many, MANY)),
        &show(kib(&few, FEW)),
        None,
        ("<= 64 KiB", kib(&many, MANY) <= 64.0),
    );
    let maps = |measured: &Measured, devices: usize| format!("{:.2}", measured.maps as f64 / devices as f64);
    print(
        "memory maps of each of 10,000 devices, vs 1,000",
        maps(&many, MANY),
        &maps(&few, FEW),
        None,
        ("<= 2.5", many.maps * 2 <= MANY * 5),
    );
    let share = |measured: &Measured| format!("{:.0} %", measured.processor * 100.0);
    print(
        "processor of 10,000 devices at 1 Hz, vs 1,000",
        share(&many),
        &share(&few),
        None,
        ("<= 60 % of a core", many.processor <= 0.6),
    );
    let millis = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
    print(
        "one device changed in a file of 10,000, until it runs, vs 1,000",
        millis(many.change),
        &millis(few.change),
        None,
        ("<= 200 ms", many.change <= Duration::from_millis(200)),
    );
    print(
        "stop of 10,000 devices by SIGTERM, vs 1,000",
        seconds(many.stop),
        &seconds(few.stop),
        None,
        ("<= 3 s", many.stop <= Duration::from_secs(3)),
    );
}

/// An hour of 1,000 devices with a swap each second, a line for each five
/// minutes: whether anything grows. `SANDGATE_SOAK_MINUTES` sets another length.
pub async fn soak() {
    let minutes = std::env::var("SANDGATE_SOAK_MINUTES").map_or(60, |text| text.parse().unwrap());
    let site = Site::new(FEW);
    let drivers = ["bench.wasm", "other.wasm"];
    std::fs::write(site.folder.path().join(drivers[1]), guest("bench", "1.0.1")).unwrap();
    let mut observer = observer(site.broker.1).await;
    site.configure(FEW, None);
    let begin = Instant::now();
    let mut process = site.run();
    first_samples(&mut observer, FEW).await;
    let (mut samples, mut swaps, mut lines) = (0_u64, 0_usize, Vec::new());
    let mut next_line = Duration::from_secs(60);
    while begin.elapsed() < Duration::from_secs(60 * minutes) {
        let driver = drivers[(swaps / FEW + 1) % 2];
        let mut swap = Command::new(env!("CARGO_BIN_EXE_sandgate"));
        swap.args(["swap", &format!("d{}", swaps % FEW), driver, "--state", "sandgate-state"]);
        let swap = swap.current_dir(site.folder.path()).stdin(Stdio::null()).output().unwrap();
        assert!(swap.status.success(), "{}", String::from_utf8_lossy(&swap.stderr));
        swaps += 1;
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            sample(&mut observer).await;
            samples += 1;
        }
        if begin.elapsed() >= next_line {
            let usage = Usage::of(&process.0);
            let files = std::fs::read_dir(Path::new("/proc").join(process.0.id().to_string()).join("fd"));
            let (memory, files) = (usage.memory as f64 / 1024.0 / 1024.0, files.unwrap().count());
            let minute = begin.elapsed().as_secs() / 60;
            println!(
                "minute {minute}: {memory:.1} MiB, {} maps, {files} files, {swaps} swaps, {samples} samples",
                usage.maps
            );
            lines.push(memory);
            next_line += Duration::from_secs(300);
        }
    }
    stop(&mut process);
    // The first line stands for the start; what the swaps load once comes soon after it.
    if let [_, early, .., last] = lines[..] {
        let bar = ("<= 1.1", last <= early * 1.1);
        print(
            "memory at the end of the soak, vs after six minutes",
            format!("{last:.1} MiB"),
            &format!("{early:.1} MiB"),
            Some(last / early),
            bar,
        );
    }
}

struct Measured {
    /// From the start of the process to the first sample of the last device.
    start: Duration,
    /// Resident bytes beyond those of a gateway without devices.
    memory: u64,
    /// Memory maps, as the kernel counts them.
    maps: usize,
    /// Processor time by time, in steady state.
    processor: f64,
    /// From the replacement of the configuration to the changed device's next sample.
    change: Duration,
    stop: Duration,
}

/// A folder with a configuration, beside a broker. Devices start with a warm cache.
struct Site {
    folder: tempfile::TempDir,
    broker: Mosquitto,
    devices: usize,
}

/// A gateway that runs.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Site {
    fn new(devices: usize) -> Site {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("bench.wasm"), guest("bench", "1.0.0")).unwrap();
        let broker = mosquitto(folder.path());
        Site { folder, broker, devices }
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("gateway.toml")
    }

    /// Writes the configuration in one step; a device may send more samples at once.
    fn configure(&self, devices: usize, changed: Option<usize>) {
        let mut text =
            format!("[sessions.main.enapter]\nhost = '127.0.0.1'\nport = {}\nhardware_id = 'S01'\n", self.broker.1);
        for number in 0..devices {
            let burst = if changed == Some(number) { 3 } else { 1 };
            write!(text, "[devices.d{number}]\ndriver = 'bench.wasm'\nconfiguration.main.burst = {burst}\n").unwrap();
        }
        let new = self.folder.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.configuration()).unwrap();
    }

    fn run(&self) -> Process {
        run(self.folder.path())
    }

    async fn measured(self) -> Measured {
        let mut observer = observer(self.broker.1).await;
        // The compiled code and the state folder of a gateway that has run before.
        self.configure(1, None);
        let mut one = self.run();
        first_samples(&mut observer, 1).await;
        let empty = Usage::of(&one.0).memory;
        stop(&mut one);
        self.configure(self.devices, None);
        let begin = Instant::now();
        let mut process = self.run();
        first_samples(&mut observer, self.devices).await;
        let start = begin.elapsed();
        // What the start has left is done.
        samples_for(&mut observer, Duration::from_secs(5)).await;
        let (before, begin) = (Usage::of(&process.0).processor, Instant::now());
        samples_for(&mut observer, Duration::from_secs(10)).await;
        let usage = Usage::of(&process.0);
        let processor = (usage.processor - before).as_secs_f64() / begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        self.configure(self.devices, Some(self.devices / 2));
        burst_of(&mut observer, self.devices / 2).await;
        let change = begin.elapsed();
        let begin = Instant::now();
        stop(&mut process);
        let stop = begin.elapsed();
        let memory = usage.memory.saturating_sub(empty);
        Measured { start, memory, maps: usage.maps, processor, change, stop }
    }
}

/// Runs the gateway of a folder.
pub fn run(folder: &Path) -> Process {
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandgate"));
    command.args(["run", "gateway.toml"]).current_dir(folder).process_group(0);
    command.env("SANDGATE_LOG", "warn").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    Process(command.spawn().unwrap())
}

struct Usage {
    memory: u64,
    maps: usize,
    processor: Duration,
}

impl Usage {
    fn of(process: &Child) -> Usage {
        let folder = Path::new("/proc").join(process.id().to_string());
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        let status = read("status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        let processor = Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second());
        Usage { memory: kib * 1024, maps: read("maps").lines().count(), processor }
    }
}

pub fn stop(process: &mut Process) {
    let status = Command::new("kill").arg(process.0.id().to_string()).status().unwrap();
    assert!(status.success());
    assert!(process.0.wait().unwrap().success());
}

pub async fn observer(port: u16) -> EventLoop {
    let (client, mut events) = AsyncClient::new(options("observer", port), 16);
    client.subscribe("v1/from/S01/+/v1/telemetry", QoS::AtMostOnce).await.unwrap();
    while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::SubAck(_))) {}
    // It lives as long as the event loop.
    std::mem::forget(client);
    events
}

/// The device of the next sample, and the sample.
pub async fn sample(observer: &mut EventLoop) -> (String, Vec<u8>) {
    loop {
        if let Event::Incoming(Packet::Publish(publish)) = observer.poll().await.unwrap()
            && let Some((_, device)) = publish.topic.trim_end_matches("/v1/telemetry").rsplit_once("--")
        {
            return (device.to_owned(), publish.payload.to_vec());
        }
    }
}

pub async fn first_samples(observer: &mut EventLoop, devices: usize) {
    let mut seen = HashSet::new();
    while seen.len() < devices {
        seen.insert(sample(observer).await.0);
    }
}

pub async fn samples_for(observer: &mut EventLoop, time: Duration) -> u64 {
    let end = Instant::now() + time;
    let mut samples = 0;
    while Instant::now() < end {
        sample(observer).await;
        samples += 1;
    }
    samples
}

/// Waits until a device has sent samples without the pause of a second between them.
async fn burst_of(observer: &mut EventLoop, device: usize) {
    let wanted = format!("d{device}");
    let mut last = Instant::now() - Duration::from_secs(1);
    let mut is_first = true;
    loop {
        let (device, _) = sample(observer).await;
        if device == wanted {
            if !is_first && last.elapsed() < Duration::from_millis(500) {
                return;
            }
            (is_first, last) = (false, Instant::now());
        }
    }
}
