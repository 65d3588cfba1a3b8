//! What the tests share: guests, brokers, an observer of the broker, a gateway
//! process, a proxy that can be unplugged.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::Value as Json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

/// How long a test waits for a thing that should come at once. Machines are
/// slow at times: compiling a Python driver beside the other tests takes a minute.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What the broker keeps for an observer that falls behind: nothing may be missing.
const ROOM: usize = 1 << 30;

/// Set in the environment of the run with mosquitto.
pub const MOSQUITTO: &str = "SANDGATE_TEST_MOSQUITTO";

/// The program under test.
pub const SANDGATE: &str = env!("CARGO_BIN_EXE_sandgate");

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Runs a command and returns its output; panics when it fails.
pub fn must(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed:\n{text}");
    text
}

/// A guest from tests/fixtures with its manifest embedded. All are built once.
pub fn fixture(name: &str) -> Vec<u8> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        must(Command::new("rustup").args(["target", "add", "wasm32-wasip2"]).current_dir(root()));
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from);
        must(Command::new("cargo").current_dir(root()).args([
            "build",
            "--profile",
            "driver",
            "--target",
            "wasm32-wasip2",
            "-p",
            "sandgate-fixtures",
            "--examples",
        ]));
        target.join("wasm32-wasip2/driver/examples")
    });
    let bytes = std::fs::read(folder.join(format!("{}.wasm", name.replace('-', "_"))))
        .or_else(|_| std::fs::read(folder.join(format!("{name}.wasm"))));
    let bytes = bytes.unwrap();
    match std::fs::read_to_string(root().join("tests/fixtures").join(name).join("manifest.yml")) {
        Ok(manifest) => sandgate::sandbox::embed_manifest(&bytes, &manifest).unwrap(),
        Err(_) => bytes,
    }
}

/// A guest with parts of its manifest replaced: another version of itself.
pub fn fixture_with(name: &str, from: &str, to: &str) -> Vec<u8> {
    let manifest = std::fs::read_to_string(root().join("tests/fixtures").join(name).join("manifest.yml")).unwrap();
    assert!(manifest.contains(from), "{from} is not in the manifest of {name}");
    sandgate::sandbox::embed_manifest(&fixture(name), &manifest.replace(from, to)).unwrap()
}

/// A port that nobody listens on and that the system gives to nobody else.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id() as u16);
        let port = 10_000 + offset % 5000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A running broker.
pub struct Broker {
    pub port: u16,
    processes: Vec<Child>,
    _folder: Option<tempfile::TempDir>,
    /// Ends the broker of this process when it is dropped.
    _end: Option<std::sync::mpsc::Sender<()>>,
}

impl Broker {
    /// The broker of this run: the one of the stand-in, or mosquitto.
    pub fn start() -> Broker {
        if std::env::var_os(MOSQUITTO).is_some() {
            return Broker::mosquitto("allow_anonymous true", &[]);
        }
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            tell.send(listener.local_addr().unwrap().port()).unwrap();
            let broker = sandgate_standin::broker::Broker::with_room(Box::new(|_| {}), ROOM);
            // The broker runs until its test drops it.
            let ended = runtime.spawn_blocking(move || ended.recv().is_err());
            runtime.block_on(async {
                tokio::select! {
                    () = broker.run(listener) => {}
                    _ = ended => {}
                }
            });
        });
        Broker { port: told.recv().unwrap(), processes: Vec::new(), _folder: None, _end: Some(end) }
    }

    /// Debian's nats-server, whose MQTT is a layer over JetStream.
    pub fn nats() -> Broker {
        let (port, own) = (free_port(), free_port());
        let config = format!(
            "server_name: test\nlisten: 127.0.0.1:{own}\njetstream {{ store_dir: FOLDER }}\n\
             mqtt {{ host: 127.0.0.1, port: {port} }}\n"
        );
        Broker::program(port, "nats-server", &config, |command, config| {
            command.arg("-c").arg(config);
        })
    }

    /// Debian's RabbitMQ with its plugin for MQTT, as a node of its own.
    pub fn rabbitmq() -> Broker {
        let (port, own, distribution, names) = (free_port(), free_port(), free_port(), free_port().to_string());
        let config = format!(
            "listeners.tcp.1 = 127.0.0.1:{own}\nmqtt.listeners.tcp.1 = 127.0.0.1:{port}\nmqtt.allow_anonymous = true\n"
        );
        // Erlang would start one that outlives the test.
        let mut name_server = Command::new("epmd");
        name_server.args(["-port", &names, "-address", "127.0.0.1"]).stdout(Stdio::null()).stderr(Stdio::null());
        let name_server = name_server.spawn().unwrap();
        // The program in the path is a script that becomes another user.
        let program = "/usr/lib/rabbitmq/bin/rabbitmq-server";
        let mut broker = Broker::program(port, program, &config, |command, config| {
            let folder = config.parent().unwrap();
            std::fs::write(folder.join("plugins"), "[rabbitmq_mqtt].").unwrap();
            command
                .env("HOME", folder)
                .env("ERL_EPMD_PORT", &names)
                .env("RABBITMQ_NODENAME", format!("sandgate-{port}@localhost"))
                .env("RABBITMQ_DIST_PORT", distribution.to_string())
                .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
                .env("RABBITMQ_LOG_BASE", folder.join("log"))
                .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
                .env("RABBITMQ_CONFIG_FILE", config)
                .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
                .env("RABBITMQ_PID_FILE", folder.join("pid"));
        });
        broker.processes.push(name_server);
        broker
    }

    /// Debian's ejabberd with its module for MQTT, which takes any name and password.
    pub fn ejabberd() -> Broker {
        let (port, names) = (free_port(), free_port().to_string());
        let config = format!(
            "hosts: [localhost]\nauth_method: [anonymous]\nanonymous_protocol: login_anon\n\
             allow_multiple_connections: true\nlisten:\n  - {{ port: {port}, ip: 127.0.0.1, module: mod_mqtt }}\n\
             modules:\n  mod_mqtt: {{ access_publish: {{}}, access_subscribe: {{}} }}\n"
        );
        let mut name_server = Command::new("epmd");
        name_server.args(["-port", &names, "-address", "127.0.0.1"]).stdout(Stdio::null()).stderr(Stdio::null());
        let name_server = name_server.spawn().unwrap();
        // Its own script becomes another user.
        let mut broker = Broker::program(port, "erl", &config, |command, config| {
            let folder = config.parent().unwrap();
            let config_file = folder.join("ejabberd.yml");
            std::fs::copy(config, &config_file).unwrap();
            command
                .args(["-noinput", "-sname", &format!("sandgate-{port}@localhost"), "-s", "ejabberd"])
                .args(["-mnesia", "dir", &format!("{:?}", folder.join("data"))])
                .env("HOME", folder)
                .env("ERL_EPMD_PORT", &names)
                .env("ERL_LIBS", format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH))
                .env("EJABBERD_CONFIG_PATH", config_file)
                .env("EJABBERD_LOG_PATH", folder.join("ejabberd.log"));
        });
        broker.processes.push(name_server);
        broker
    }

    /// A program with this configuration, in whose folder it works; ended with all of its children.
    fn program(port: u16, name: &str, config: &str, set_up: impl FnOnce(&mut Command, &Path)) -> Broker {
        use std::os::unix::process::CommandExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.conf");
        std::fs::write(&path, config.replace("FOLDER", folder.path().to_str().unwrap())).unwrap();
        let mut command = Command::new(name);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        set_up(&mut command, &path);
        let process = command.spawn().unwrap();
        let broker = Broker { port, processes: vec![process], _folder: Some(folder), _end: None };
        until(&format!("{name} to listen"), || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        broker
    }

    /// Debian's mosquitto with further lines in its configuration, in whose
    /// folder the files are.
    pub fn mosquitto(lines: &str, files: &[(&str, &str)]) -> Broker {
        Broker::mosquitto_at(free_port(), lines, files)
    }

    /// The same at a port.
    pub fn mosquitto_at(port: u16, lines: &str, files: &[(&str, &str)]) -> Broker {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let lines = lines.replace("FOLDER", folder.path().to_str().unwrap());
        let config = format!(
            "per_listener_settings true\nuser root\nmax_queued_messages 100000\nlistener {port} 127.0.0.1\n{lines}\n"
        );
        let path = folder.path().join("mosquitto.conf");
        std::fs::write(&path, config).unwrap();
        let process = Command::new("mosquitto").arg("-c").arg(&path).stderr(Stdio::null()).spawn().unwrap();
        let broker = Broker { port, processes: vec![process], _folder: Some(folder), _end: None };
        until("mosquitto to listen", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        broker
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // A script starts the program itself, in a group of its own.
            let group = format!("-{}", process.id());
            let _ = Command::new("kill").args(["-9", "--", &group]).stderr(Stdio::null()).status();
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A process that ends also when a test fails.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks again and again until there is an answer.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = std::time::Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One message seen at the broker.
#[derive(Debug, Clone)]
pub struct Message {
    pub at: std::time::Instant,
    pub topic: String,
    pub payload: Vec<u8>,
}

impl Message {
    pub fn json(&self) -> Json {
        serde_json::from_slice(&self.payload).unwrap_or_default()
    }

    /// The payload, if it came on this topic.
    pub fn on(&self, topic: &str) -> Option<Json> {
        (self.topic == topic).then(|| self.json())
    }
}

/// Sees everything that passes a broker, and speaks as the cloud does.
pub struct Observer {
    client: AsyncClient,
    seen: Arc<(Mutex<Vec<Message>>, Notify)>,
}

impl Observer {
    pub async fn connect(port: u16) -> Observer {
        Observer::connect_as(port, None).await
    }

    /// The same with a name and a password.
    pub async fn connect_as(port: u16, credentials: Option<(&str, &str)>) -> Observer {
        until("the broker to listen", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        let mut options = MqttOptions::new(format!("observer-{}", fastrand::u32(..)), "127.0.0.1", port);
        options.set_max_packet_size(8 << 20, 8 << 20);
        if let Some((name, password)) = credentials {
            options.set_credentials(name, password);
        }
        let (client, mut events) = AsyncClient::new(options, 1000);
        client.subscribe("v1/from/#", QoS::AtLeastOnce).await.unwrap();
        let seen: Arc<(Mutex<Vec<Message>>, Notify)> = Arc::default();
        let ready = Arc::new(Notify::new());
        let (sink, is_ready, again) = (Arc::clone(&seen), Arc::clone(&ready), client.clone());
        tokio::spawn(async move {
            let mut has_subscribed = false;
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::SubAck(_))) => {
                        has_subscribed = true;
                        is_ready.notify_one();
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let message = Message {
                            at: std::time::Instant::now(),
                            topic: publish.topic,
                            payload: publish.payload.to_vec(),
                        };
                        sink.0.lock().unwrap().push(message);
                        sink.1.notify_waiters();
                    }
                    Ok(_) => {}
                    Err(_) if has_subscribed => return,
                    // The machine is busy, and the broker took too long.
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        let _ = again.try_subscribe("v1/from/#", QoS::AtLeastOnce);
                    }
                }
            }
        });
        timeout(PATIENCE, ready.notified()).await.expect("the observer subscribes");
        Observer { client, seen }
    }

    /// All messages so far.
    pub fn all(&self) -> Vec<Message> {
        self.seen.0.lock().unwrap().clone()
    }

    /// How many messages came so far.
    pub fn mark(&self) -> usize {
        self.seen.0.lock().unwrap().len()
    }

    /// Waits for the first message, from the start on, that gives an answer.
    pub async fn find<T>(&self, what: &str, find: impl FnMut(&Message) -> Option<T>) -> T {
        self.find_after(0, what, find).await
    }

    /// Waits for the first message after a mark that gives an answer.
    pub async fn find_after<T>(&self, mark: usize, what: &str, mut find: impl FnMut(&Message) -> Option<T>) -> T {
        let mut next = mark;
        let search = async {
            loop {
                let news = self.seen.1.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                {
                    let seen = self.seen.0.lock().unwrap();
                    while let Some(message) = seen.get(next) {
                        next += 1;
                        if let Some(answer) = find(message) {
                            return answer;
                        }
                    }
                }
                news.await;
            }
        };
        match timeout(PATIENCE, search).await {
            Ok(answer) => answer,
            Err(_) => {
                let all = self.all();
                let last: Vec<_> = all.iter().rev().take(20).map(|m| format!("{} {}", m.topic, m.json())).collect();
                panic!("waited in vain for {what}; {} messages, the last ones: {last:#?}", all.len());
            }
        }
    }

    /// Publishes as the cloud.
    pub async fn publish(&self, topic: &str, payload: &str) {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
    }

    /// Sends a command to a channel and waits for its end.
    pub async fn command(&self, channel: &str, request: Json) -> Json {
        let mark = self.mark();
        let id = request["id"].clone();
        self.publish(&format!("v1/to/S01/{channel}/v1/command/requests"), &request.to_string()).await;
        self.find_after(mark, &format!("the answer to {request}"), |message| {
            let answer = message.on(&format!("v1/from/S01/{channel}/v1/command/responses"))?;
            (answer["id"] == id && answer["state"] != "log").then_some(answer)
        })
        .await
    }
}

/// A gateway process in a folder of its own.
pub struct Gateway {
    pub folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Gateway {
    /// A folder with these guests as files; nothing runs yet.
    pub fn prepare(files: &[(&str, Vec<u8>)]) -> Gateway {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        Gateway { folder, process: None }
    }

    /// Writes the configuration and starts the program.
    pub fn start(&mut self, port: u16, devices: &str) {
        self.configure(port, devices);
        self.restart();
    }

    /// Writes the configuration.
    pub fn configure(&self, port: u16, devices: &str) {
        let text = format!(
            "[gateway]\ntelemetry_every = '1s'\n[sessions.main.enapter]\nhost = '127.0.0.1'\n\
             port = {port}\nhardware_id = 'S01'\n{devices}"
        );
        self.write("gateway.toml", text.as_bytes());
    }

    /// Starts the program with the configuration as it is.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// The same with further variables in its environment.
    pub fn restart_with(&mut self, variables: &[(&str, &str)]) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let process = Command::new(SANDGATE)
            .args(["run", "gateway.toml"])
            .current_dir(self.folder.path())
            .env("SANDGATE_LOG", "warn,sandgate=debug")
            .env("NO_COLOR", "1")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces a file in one step.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        let part = self.path(&format!("{name}.part"));
        std::fs::write(&part, bytes).unwrap();
        std::fs::rename(part, self.path(name)).unwrap();
    }

    /// Overwrites a file in place.
    pub fn overwrite(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Kills the process as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Sends SIGTERM and waits for a good end.
    pub fn terminate(&mut self) {
        let mut process = self.process.take().unwrap();
        must(Command::new("kill").arg(process.id().to_string()));
        assert!(process.wait().unwrap().success());
    }

    /// The id of the running process.
    pub fn id(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    pub fn is_alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits for a text in the log.
    pub fn wait_for_log(&self, text: &str) {
        until(&format!("{text:?} in the log:\n{}", self.log()), || self.log().contains(text).then_some(()));
    }

    /// Runs a command of the program beside the gateway.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        Command::new(SANDGATE).args(arguments).current_dir(self.folder.path()).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command of the program and reads its JSON.
    pub fn json(&self, arguments: &[&str]) -> Json {
        let output = self.cli(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            panic!(
                "{arguments:?}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        })
    }

    /// The report of a device, or null.
    pub fn device(&self, id: &str) -> Json {
        let output = self.cli(&["devices", "--json"]);
        let status: Json = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let devices = status["devices"].as_array().cloned().unwrap_or_default();
        devices.into_iter().find(|device| device["id"] == id).unwrap_or_default()
    }

    /// Waits until the report of a device gives an answer.
    pub fn wait_for_device<T>(&self, id: &str, what: &str, mut find: impl FnMut(&Json) -> Option<T>) -> T {
        let mut last = Json::Null;
        let begin = std::time::Instant::now();
        loop {
            last = match self.device(id) {
                Json::Null => last,
                report => report,
            };
            if let Some(answer) = find(&last) {
                return answer;
            }
            assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}: {last:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Waits until a device has sent that many samples.
    pub fn wait_for_samples(&self, id: &str, samples: u64) {
        self.wait_for_device(id, "samples", |device| (device["samples"].as_u64()? >= samples).then_some(()));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("log of the gateway:\n{}", self.log());
        }
    }
}

/// Stands between a gateway and a broker; can be unplugged.
pub struct Proxy {
    pub port: u16,
    plugged: Arc<AtomicBool>,
    pulled: Arc<Notify>,
}

impl Proxy {
    pub async fn to(target: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (plugged, pulled) = (Arc::new(AtomicBool::new(true)), Arc::new(Notify::new()));
        let (is_plugged, pull) = (Arc::clone(&plugged), Arc::clone(&pulled));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if !is_plugged.load(Ordering::SeqCst) {
                    continue;
                }
                let pull = Arc::clone(&pull);
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = pull.notified() => {}
                    }
                });
            }
        });
        Proxy { port, plugged, pulled }
    }

    /// Cuts all connections and refuses new ones.
    pub fn unplug(&self) {
        self.plugged.store(false, Ordering::SeqCst);
        self.pulled.notify_waiters();
    }

    pub fn plug(&self) {
        self.plugged.store(true, Ordering::SeqCst);
    }
}
