//! A gateway connected to a stand-in of Kaa.

use std::collections::BTreeSet;
use std::time::Duration;

use sandgate_standin::kaa::commands::{Command, CommandResult};
use sandgate_standin::kaa::endpoint::TokenState;
use sandgate_standin::kaa::{self, Running, Settings};
use serde_json::{Value as Json, json};

use crate::harness::{Gateway, PATIENCE, fixture, until};

/// Waits long enough for an answer, and not for ever.
pub const APP: &str = "demo-v1";

/// See the module documentation.
pub struct Site {
    pub cloud: Running,
    pub gateway: Gateway,
}

impl Site {
    /// A stand-in and a prepared gateway with these guests; nothing runs yet.
    pub async fn prepare(files: &[(&str, Vec<u8>)]) -> Site {
        Site::prepare_with(files, Settings::default()).await
    }

    /// The same with a stand-in that is set up in another way.
    pub async fn prepare_with(files: &[(&str, Vec<u8>)], settings: Settings) -> Site {
        let cloud = kaa::start(settings).await.unwrap();
        // Known beforehand, so that commands can be given before they connect.
        for token in ["t1", "t2", "gw"] {
            cloud.cloud.set_token(token, TokenState::Inactive, Some(APP)).unwrap();
        }
        Site { cloud, gateway: Gateway::prepare(files) }
    }

    /// A running gateway with the driver `echo` as device `d1`, token `t1`.
    pub async fn with_echo(settings: &str) -> Site {
        let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
        site.start(settings, &echo("d1", "t1", 20));
        site.wait_for_samples("t1", 1).await;
        site
    }

    /// Writes the configuration and starts the gateway.
    pub fn start(&mut self, settings: &str, devices: &str) {
        self.configure(settings, devices);
        self.gateway.restart();
    }

    /// Writes the configuration; `settings` are further keys of the session.
    pub fn configure(&self, settings: &str, devices: &str) {
        let (mqtt, http) = (self.cloud.mqtt.port(), self.cloud.http);
        let text = format!(
            "[gateway]\ntelemetry_every = '1s'\n[sessions.kaa.kaa]\nhost = '127.0.0.1'\nport = {mqtt}\n\
             app_version = '{APP}'\ntoken = {{ value = 'gw' }}\nreply_timeout = '1s'\n\
             binary_data_url = 'http://{http}'\nbatch = {{ max_age = '100ms' }}\n{settings}\n{devices}"
        );
        self.gateway.write("gateway.toml", text.as_bytes());
    }

    /// Waits until an endpoint has stored this number of samples.
    pub async fn wait_for_samples(&self, token: &str, number: usize) -> Vec<Json> {
        self.until(&format!("{number} samples of {token}"), || {
            let samples = self.samples(token);
            (samples.len() >= number).then_some(samples)
        })
        .await
    }

    /// The samples of an endpoint so far.
    pub fn samples(&self, token: &str) -> Vec<Json> {
        self.cloud.cloud.samples(token, 0).into_iter().map(|sample| sample.value).collect()
    }

    /// The counts in the samples, in the order in which they arrived.
    pub fn counts(&self, token: &str) -> Vec<u64> {
        self.samples(token).iter().filter_map(|sample| sample["count"].as_u64()).collect()
    }

    /// Asks again and again until there is an answer; the stand-in runs on.
    pub async fn until<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let begin = std::time::Instant::now();
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}: {}", self.story());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until all counts from 1 to one that comes now have arrived.
    pub async fn wait_for_all_counts(&self, token: &str) {
        let last = self.counts(token).into_iter().max().unwrap_or_default() + 20;
        let begin = std::time::Instant::now();
        loop {
            let counts: BTreeSet<u64> = self.counts(token).into_iter().collect();
            let missing: Vec<u64> = (1..=last).filter(|count| !counts.contains(count)).collect();
            if missing.is_empty() {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{missing:?} have not arrived: {}", self.story());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs a command and waits for what the device says.
    pub async fn command(&self, token: &str, kind: &str, payload: Json) -> CommandResult {
        let command = self.cloud.cloud.send_command(token, kind, Some(payload), 600_000).unwrap();
        self.result(token, &command).await
    }

    /// Waits for the result of a command.
    pub async fn result(&self, token: &str, command: &Command) -> CommandResult {
        let executed = self.cloud.cloud.await_result(token, command, PATIENCE).await;
        let executed = executed.unwrap_or_else(|| panic!("no result of {command:?}: {}", self.story()));
        executed.result.unwrap()
    }

    /// Puts a configuration and returns its id.
    pub fn put_config(&self, token: &str, config: Json) -> String {
        self.cloud.cloud.put_config(token, config).unwrap()
    }

    /// Waits for the report of a configuration or of software: `configurations` or `software`.
    pub async fn wait_for_report(&self, token: &str, kind: &str, id: &str, accepted: bool) -> Json {
        let url = format!("http://{}/standin/v1/endpoints/{token}/{kind}", self.cloud.http);
        let begin = std::time::Instant::now();
        loop {
            let history: Json = serde_json::from_slice(&get(&url).await).unwrap();
            let event = if accepted { "applied" } else { "rejected" };
            let found = history.as_array().unwrap().iter().rev();
            let found = found.into_iter().find(|entry| entry["configId"] == id && entry["event"] == event).cloned();
            if let Some(report) = found {
                return report;
            }
            let wanted = json!({"configId": id, "accepted": accepted});
            assert!(begin.elapsed() < PATIENCE, "waited in vain for {wanted} in {history:#}: {}", self.story());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Counts of the session, as `sandgate devices` shows them.
    pub fn session(&self, count: &str) -> u64 {
        self.gateway.json(&["devices"])["sessions"]["kaa"][count].as_u64().unwrap_or_default()
    }

    /// What the stand-in saw last.
    pub fn story(&self) -> String {
        let events = self.cloud.cloud.events();
        let last = events.iter().rev().take(40).rev();
        last.map(|event| format!("{:?} {:?}: {}\n", event.what, event.endpoint, event.text)).collect()
    }
}

/// A device with the driver `echo`.
pub fn echo(id: &str, token: &str, interval_ms: u64) -> String {
    format!(
        "[devices.{id}]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = {interval_ms}\n\
         limits.telemetry = '1000/s'\nendpoints.kaa.token = '{token}'\n"
    )
}

/// Reads a URL.
pub async fn get(url: &str) -> Vec<u8> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let response = reqwest::get(url).await.unwrap();
    response.bytes().await.unwrap().to_vec()
}

/// Waits for a text in the gateway's log.
pub fn wait_for_log(gateway: &Gateway, text: &str) {
    until(&format!("{text:?} in the log"), || gateway.log().contains(text).then_some(()));
}
