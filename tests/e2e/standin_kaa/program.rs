//! The stand-in as a program, and mosquitto's clients.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value as Json;

use crate::harness::{SANDGATE, must, until};

/// A running `sandgate cloud kaa`.
pub struct StandIn {
    pub mqtt: u16,
    pub http: u16,
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl StandIn {
    /// Starts it on free ports.
    pub fn start(options: &[&str]) -> StandIn {
        let mut process = Command::new(SANDGATE)
            .args(["cloud", "kaa", "--mqtt", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = collect(process.stdout.take().unwrap());
        let first = until("the stand-in to listen", || lines.lock().unwrap().first().cloned());
        let first: Json = serde_json::from_str(&first).unwrap();
        let port = |key: &str| first[key].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        StandIn { mqtt: port("mqtt"), http: port("http"), process, lines }
    }

    /// Where its HTTP side is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// Runs a command of the program against it.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        Command::new(SANDGATE)
            .args(["cloud", "kaa"])
            .args(arguments)
            .args(["--url", &self.url()])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command that must do well, and reads what it prints: one JSON document or several.
    pub fn json(&self, arguments: &[&str]) -> Vec<Json> {
        let output = self.cli(&[arguments, &["--json"]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}{}", String::from_utf8_lossy(&output.stdout));
        serde_json::Deserializer::from_slice(&output.stdout).into_iter().map(Result::unwrap).collect()
    }

    /// Waits for an event whose text has these words.
    pub fn wait_for_event(&self, words: &str) {
        let has = || self.lines.lock().unwrap().iter().any(|line| line.contains(words)).then_some(());
        until(&format!("the event {words:?}"), has);
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("events of the stand-in:\n{}", self.lines.lock().unwrap().join("\n"));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn collect(output: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let sink = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            sink.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
        }
    });
    lines
}

/// Publishes with `mosquitto_pub`.
pub fn publish(stand_in: &StandIn, version: &str, qos: &str, topic: &str, payload: &str) {
    let version = format!("mqttv{version}");
    let port = stand_in.mqtt.to_string();
    let mut command = Command::new("mosquitto_pub");
    command.args(["-V", &version, "-h", "127.0.0.1", "-p", &port, "-q", qos, "-t", topic]);
    if payload.is_empty() {
        command.arg("-n");
    } else {
        command.args(["-m", payload]);
    }
    must(&mut command);
}

/// A `mosquitto_sub`.
pub struct Listener {
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Listener {
    /// Starts it and waits until it has subscribed.
    pub fn start(stand_in: &StandIn, version: &str, filters: &[&str]) -> Listener {
        let version = format!("mqttv{version}");
        let port = stand_in.mqtt.to_string();
        let mut command = Command::new("stdbuf");
        // Debug lines tell when it has subscribed; the bar parts them from messages.
        command.args(["-oL", "mosquitto_sub", "-d", "-V", &version, "-h", "127.0.0.1", "-p", &port, "-q", "2"]);
        command.args(["-F", "|%t|%p"]);
        for filter in filters {
            command.args(["-t", filter]);
        }
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = collect(process.stdout.take().unwrap());
        let listener = Listener { process, lines };
        let subscribed =
            || listener.lines.lock().unwrap().iter().any(|line| line.starts_with("Subscribed")).then_some(());
        until("mosquitto_sub to subscribe", subscribed);
        listener
    }

    /// All messages so far.
    pub fn seen(&self) -> Vec<(String, String)> {
        let lines = self.lines.lock().unwrap();
        let message = |line: &String| {
            let (topic, payload) = line.strip_prefix('|')?.split_once('|')?;
            Some((topic.to_owned(), payload.to_owned()))
        };
        lines.iter().filter_map(message).collect()
    }

    /// The payload of the first message on a topic.
    pub fn wait(&self, topic: &str) -> String {
        let find = || self.seen().into_iter().find(|(seen, _)| seen == topic).map(|(_, payload)| payload);
        until(&format!("a message on {topic}; there are {:#?}", self.seen()), find)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A payload as JSON.
pub fn body_of(payload: &str) -> Json {
    serde_json::from_str(payload).unwrap_or_else(|error| panic!("{payload:?}: {error}"))
}
