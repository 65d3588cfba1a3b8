//! The stand-in for Enapter with a real gateway, and its command line.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandgate_standin::enapter::blueprints::{Source, Sources};
use sandgate_standin::enapter::{self, Running, Settings};
use serde_json::{Value as Json, json};

use crate::harness::{Gateway, PATIENCE, SANDGATE, fixture, fixture_with, until};

const DEVICES: &str = "
[devices.echo1]
driver = 'echo.wasm'
configuration.main.interval_ms = 50
[devices.stuck]
driver = 'hostile.wasm'
configuration.main.act = 'sleep in handle-command'
limits.call = '1h'
";

/// A stand-in on free ports, asked over HTTP.
struct Cloud {
    running: Running,
    http: reqwest::Client,
}

impl Cloud {
    async fn start(settings: Settings) -> Cloud {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Cloud { running: enapter::start(settings).await.unwrap(), http }
    }

    /// One request; the status and the body.
    async fn ask(&self, method: &str, path: &str, body: Option<Json>) -> (u16, Json) {
        let (status, text) = self.text(method, path, body).await;
        (status, serde_json::from_str(&text).unwrap_or(Json::String(text)))
    }

    async fn text(&self, method: &str, path: &str, body: Option<Json>) -> (u16, String) {
        let url = format!("http://{}{path}", self.running.http);
        let mut request = self.http.request(method.parse().unwrap(), url);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn get(&self, path: &str) -> Json {
        let (status, body) = self.ask("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// JSON objects, one a line.
    async fn lines(&self, path: &str) -> Vec<Json> {
        let (status, body) = self.text("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Asks until the report of a device gives an answer.
    async fn wait_for<T>(&self, channel: &str, mut find: impl FnMut(&Json) -> Option<T>) -> T {
        let mut last = Json::Null;
        let search = async {
            loop {
                last = self.get("/standin/v1/devices").await;
                let devices = last["devices"].as_array().unwrap();
                if let Some(answer) = devices.iter().find(|d| d["channel_id"] == channel).and_then(&mut find) {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, search).await;
        found.unwrap_or_else(|_| panic!("waited in vain for {channel}: {last:#}"))
    }

    async fn wait_for_event(&self, find: impl Fn(&Json) -> bool) -> Json {
        let search = async {
            loop {
                if let Some(event) = self.lines("/standin/v1/log?limit=5000").await.into_iter().find(&find) {
                    return event;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the event")
    }

    async fn execute(&self, channel: &str, query: &str, body: Json) -> Json {
        let path = format!("/v3/devices/{channel}/execute_command?expand=log{query}");
        let (status, mut answer) = self.ask("POST", &path, Some(body)).await;
        assert_eq!(status, 200, "{answer}");
        answer["execution"].take()
    }
}

fn gateway() -> Gateway {
    Gateway::prepare(&[("echo.wasm", fixture("echo")), ("hostile.wasm", fixture("hostile"))])
}

/// The blueprint of echo, with less than the driver sends.
fn narrow_blueprint(gateway: &Gateway) -> Settings {
    let narrow = "  half:\n    type: float\n    display_name: Half of the count\n";
    gateway.write("narrow.wasm", &fixture_with("echo", narrow, ""));
    let source = Source { kind: Some("echo".into()), path: gateway.path("narrow.wasm") };
    Settings { blueprints: Sources { parent: None, children: vec![source] }, ..Settings::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn children_telemetry_logs_and_drops_of_a_real_gateway_are_seen() {
    let mut gateway = gateway();
    let cloud = Cloud::start(narrow_blueprint(&gateway)).await;
    gateway.start(cloud.running.mqtt.port(), DEVICES);

    let echo =
        cloud.wait_for("s--echo1", |d| (d["samples"].as_u64()? > 3 && !d["alerts"].is_null()).then(|| d.clone())).await;
    assert_eq!(
        (&echo["id"], &echo["parent"], &echo["type"], &echo["state"], &echo["blueprint"]),
        (&json!("S01:s--echo1"), &json!("S01:s"), &json!("echo"), &json!("online"), &json!("Echo"))
    );
    assert_eq!((&echo["properties"], &echo["alerts"]), (&json!({"model": "echo"}), &json!([])));
    // What the blueprint does not declare is dropped, and said so.
    assert!(echo["telemetry"]["count"].is_u64() && echo["telemetry"]["half"].is_null(), "{echo}");
    assert!(echo["dropped"].as_u64().unwrap() > 0);
    let dropped = cloud.wait_for_event(|event| event["kind"] == "dropped").await;
    assert_eq!(
        (&dropped["device"], &dropped["attribute"], &dropped["text"]),
        (
            &json!("S01:s--echo1"),
            &json!("half"),
            &json!("expected an attribute that the blueprint declares under telemetry")
        )
    );
    let parent = cloud.wait_for("s", |device| (device["samples"] != 0).then(|| device.clone())).await;
    assert!(parent["properties"]["version"].is_string() && parent["telemetry"]["uptime"].is_u64(), "{parent}");
    let announced = cloud.wait_for_event(|event| event["kind"] == "children").await;
    assert_eq!(announced["text"], "2 now: added s--echo1 (echo), added s--stuck (hostile, no blueprint)");

    // Samples come in order, and those to come are waited for.
    let samples = cloud.lines("/standin/v1/devices/s--echo1/samples?limit=3").await;
    assert_eq!(samples.len(), 3);
    let counts: Vec<u64> = samples.iter().map(|sample| sample["count"].as_u64().unwrap()).collect();
    assert_eq!((counts[1], counts[2]), (counts[0] + 1, counts[0] + 2));
    let url = format!("http://{}/standin/v1/devices/s--echo1/samples?limit=0&follow=true", cloud.running.http);
    let mut response = cloud.http.get(url).send().await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    let first: Json = serde_json::from_slice(first.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert!(first["count"].as_u64().unwrap() > counts[2]);
    let logs = cloud.lines("/standin/v1/devices/s--echo1/logs").await;
    assert!(logs.iter().any(|line| line["message"] == "starting for echo1 from 0 because of StartReason::FirstStart"));

    // The platform's own ways to telemetry.
    let latest = cloud.get("/v3/telemetry/latest?devices[s--echo1]=count,nothing").await;
    let point = &latest["telemetry"]["s--echo1"];
    assert!(point["count"]["value"].is_u64() && point["count"]["timestamp"].is_u64(), "{latest}");
    assert_eq!(point["nothing"], json!({"timestamp": null, "value": null}));
    let query = json!({"from": "2020-01-01T00:00:00+00:00", "to": "2100-01-01T00:00:00Z", "granularity": "86400s",
        "telemetry": [{"device": "s--echo1", "attribute": ["count", "on"], "aggregation": "max"}]});
    let (status, csv) = cloud.text("POST", "/v3/telemetry/query_timeseries", Some(query)).await;
    let mut rows = csv.lines();
    assert_eq!((status, rows.next()), (200, Some("ts,device=s--echo1 telemetry=count,device=s--echo1 telemetry=on")));
    assert!(rows.next().unwrap().split(',').nth(1).unwrap().parse::<u64>().unwrap() > 0, "{csv}");

    // The set is replaced as a whole.
    let devices = "[devices.echo1]\ndriver = 'echo.wasm'\n";
    gateway.configure(cloud.running.mqtt.port(), devices);
    cloud.wait_for("s--stuck", |device| (device["state"] == "gone").then_some(())).await;
    assert_eq!(cloud.wait_for("s--echo1", |device| Some(device["state"].clone())).await, "online");

    gateway.kill();
    for channel in ["s", "s--echo1"] {
        cloud.wait_for(channel, |device| (device["state"] == "offline").then_some(())).await;
    }
    let lost = cloud.wait_for_event(|event| event["kind"] == "disconnected").await;
    assert!(lost["text"].as_str().unwrap().ends_with("; 2 devices are offline"), "{lost}");
    gateway.restart();
    cloud.wait_for("s--echo1", |device| (device["state"] == "online").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_end_with_a_result_an_error_or_a_timeout() {
    let mut gateway = gateway();
    let cloud = Cloud::start(narrow_blueprint(&gateway)).await;
    gateway.start(cloud.running.mqtt.port(), DEVICES);
    cloud.wait_for("s--echo1", |device| (device["samples"].as_u64()? > 0).then_some(())).await;

    let done = cloud.execute("s--echo1", "", json!({"name": "echo", "arguments": {"text": "hi"}})).await;
    assert_eq!((&done["state"], &done["device_id"]), (&json!("SUCCESS"), &json!("S01:s--echo1")));
    assert_eq!(done["request"], json!({"name": "echo", "arguments": {"text": "hi"}, "manifest_name": null}));
    assert_eq!(done["response"]["state"], "SUCCEEDED");
    assert_eq!(done["response"]["payload"], json!({"text": "hi", "number": 7}));
    assert_eq!(done["log"][0]["state"], "IN_PROGRESS");
    assert_eq!(done["log"][0]["payload"], json!({"message": "echoing"}));

    let refused = cloud.execute("S01:s--echo1", "", json!({"name": "refuse"})).await;
    assert_eq!((&refused["state"], &refused["response"]["state"]), (&json!("ERROR"), &json!("ERROR")));
    assert_eq!(refused["response"]["payload"]["message"], "not today");
    // Arguments that do not fit go through, as over the cloud's API; the driver's host refuses.
    let wrong = cloud.execute("s--echo1", "", json!({"name": "echo", "arguments": {"text": 1}})).await;
    assert_eq!(wrong["response"]["payload"]["message"], "text: expected string, found 1");
    let note = cloud.wait_for_event(|event| event["text"].as_str().unwrap().contains("form would not send")).await;
    assert_eq!(note["text"], "echo: the cloud's form would not send this: text: expected string, found 1");

    let late = cloud.execute("s--stuck", "&timeout=0.3", json!({"name": "act"})).await;
    assert_eq!((&late["state"], &late["response"]), (&json!("TIMEOUT"), &Json::Null));

    // Started without waiting, and listed.
    let path = "/v3/devices/s--echo1/command_executions";
    let (status, created) = cloud.ask("POST", path, Some(json!({"name": "count", "arguments": {}}))).await;
    assert_eq!(status, 200, "{created}");
    let id = created["execution_id"].as_str().unwrap().to_owned();
    let followed = cloud.lines(&format!("/standin/v1/executions/{id}")).await;
    assert_eq!(followed.last().unwrap()["state"], "SUCCESS");
    assert!(followed.last().unwrap()["response"]["payload"]["count"].is_u64());
    let shown = cloud.get(&format!("{path}/{id}?expand=log")).await;
    assert_eq!((&shown["execution"]["id"], &shown["execution"]["log"]), (&json!(id), &json!([])));
    let list = cloud.get(&format!("{path}?order=CREATED_AT_DESC&state.in=SUCCESS,TIMEOUT")).await;
    let names: Vec<_> = list["executions"].as_array().unwrap().iter().map(|e| &e["request"]["name"]).collect();
    assert_eq!(names, ["count", "echo"]);

    // A gateway that goes away takes its open commands with it.
    gateway.kill();
    cloud.wait_for("s--echo1", |device| (device["state"] == "offline").then_some(())).await;
    let lost = cloud.execute("s--echo1", "&timeout=0.3", json!({"name": "count"})).await;
    assert_eq!((&lost["state"], &lost["log"]), (&json!("TIMEOUT"), &json!([])));
    let note = cloud.wait_for_event(|event| event["text"].as_str().unwrap().starts_with("count is lost")).await;
    assert_eq!(note["text"], "count is lost: nobody is subscribed to v1/to/S01/s--echo1/v1/command/requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_one_clear_error_and_the_rest_goes_on() {
    let gateway = gateway();
    let cloud = Cloud::start(Settings { hardware_id: Some("S01".into()), ..narrow_blueprint(&gateway) }).await;
    let observer = crate::harness::Observer::connect(cloud.running.mqtt.port()).await;
    observer.publish("v1/from/S01/s/v1/telemetry", "{\"timestamp\": 1, \"a\": 1}").await;
    for (topic, payload) in [("", "x"), ("v1/from/S02/s/v1/telemetry", "{\"timestamp\": 1}"), ("ä/b", "{}")] {
        if !topic.is_empty() {
            observer.publish(topic, payload).await;
        }
        observer.publish("v1/from/S01/s/v1/telemetry", payload).await;
    }
    cloud.wait_for("s", |device| (device["dropped"] == 2).then_some(())).await;

    let execute = "/v3/devices/s/execute_command";
    for (method, path, body, status, expected) in [
        ("GET", "/v3/sites", None, 404, "no such path"),
        ("GET", execute, None, 405, "expected another method"),
        (
            "POST",
            "/v3/devices/t/execute_command",
            Some(json!({"name": "x"})),
            404,
            "no device \"t\"; expected one of: s",
        ),
        ("POST", execute, None, 415, "body: Expected request with `Content-Type: application/json`"),
        ("POST", execute, Some(json!({})), 422, "body: "),
        ("POST", execute, Some(json!({"name": ""})), 400, "name: expected 1 to 128 bytes, found 0"),
        ("POST", execute, Some(json!({"name": "x", "arguments": [1]})), 422, "body: "),
        ("POST", execute, Some(json!({"name": "x".repeat(300 << 10)})), 413, "body: "),
        (
            "POST",
            "/v3/devices/s/execute_command?timeout=-1",
            Some(json!({"name": "x"})),
            400,
            "timeout: expected seconds above 0, up to 86400, found -1",
        ),
        ("GET", "/v3/devices/s/command_executions/none", None, 404, "no such command execution"),
        ("GET", "/v3/devices/s/command_executions?order=x", None, 400, "order: expected CREATED_AT_ASC or"),
        ("GET", "/v3/telemetry/latest?devices[x]=a", None, 404, "no device \"x\""),
        (
            "POST",
            "/v3/telemetry/query_timeseries",
            Some(json!({"from": "now", "to": "x", "granularity": "1s", "telemetry": []})),
            400,
            "from: expected a UTC time",
        ),
        (
            "POST",
            "/v3/telemetry/query_timeseries",
            Some(json!({"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "granularity": "1s",
                "telemetry": vec![json!({"device": "s", "attribute": []}); 60]})),
            400,
            "expected at most 200 attributes of 50 devices, found 0 of 60",
        ),
        ("GET", "/standin/v1/devices/x/samples", None, 404, "no device \"x\""),
        ("GET", "/standin/v1/devices/s/samples?limit=x", None, 400, "Failed to deserialize query string"),
        ("GET", "/standin/v1/executions/none", None, 404, "no such command execution"),
    ] {
        let (found, body) = cloud.ask(method, path, body).await;
        let message = body["errors"][0]["message"].as_str().unwrap_or_default();
        assert!(found == status && message.starts_with(expected), "{method} {path}: {found} {body}");
    }
    assert_eq!(cloud.wait_for("s", |device| Some(device["samples"].clone())).await, 2);
    let address = cloud.running.mqtt;
    let taken = enapter::start(Settings { mqtt: address, ..Settings::default() }).await.err().unwrap();
    let (taken, expected) = (format!("{taken:#}"), format!("opening the MQTT port: listening on {address}: "));
    assert!(taken.starts_with(&expected), "{taken}");
    drop(cloud);
    until("the port to be free", || std::net::TcpListener::bind(address).ok());
}

/// The program as a stand-in, and the lines that it prints.
struct Program {
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Program {
    fn start(arguments: &[&str]) -> Program {
        let ports = ["cloud", "enapter", "--mqtt", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let mut command = Command::new(SANDGATE);
        command.args(ports).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let (output, sink) = (process.stdout.take().unwrap(), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                sink.lock().unwrap().push(line);
            }
        });
        Program { process, lines }
    }

    /// Waits for a line that gives an answer.
    fn find<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        until(what, || self.lines.lock().unwrap().iter().find_map(|line| find(line)))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the stand-in printed:\n{}", self.lines.lock().unwrap().join("\n"));
        }
    }
}

fn text(output: &Output) -> (Option<i32>, String) {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code(), String::from_utf8(both).unwrap().trim().to_owned())
}

#[test]
fn the_command_line_runs_one_and_asks_it() {
    let mut gateway = gateway();
    let echo = format!("echo={}", gateway.path("echo.wasm").display());
    let mut standin = Program::start(&["--blueprint", &echo, "--hardware-id", "S01"]);
    let (mqtt, url) = standin.find("the addresses", |line| {
        let (mqtt, http) = line.strip_prefix("MQTT 127.0.0.1:")?.split_once(", HTTP ")?;
        Some((mqtt.parse::<u16>().unwrap(), http.to_owned()))
    });
    standin.find("what it knows", |line| {
        (line == "hardware id: S01; blueprint of the parent: none; of child types: echo").then_some(())
    });
    standin.find("configuration for a gateway", |line| (line == "hardware_id = \"S01\"").then_some(()));
    gateway.start(mqtt, DEVICES);
    for part in [
        " children     S01:s 2 now: added s--echo1 (echo), added s--stuck (hostile, no blueprint)",
        " telemetry    S01:s--echo1 count=3 half=1.5 on=true label=null",
        " properties   S01:s--echo1 model=echo",
        " alerts       S01:s--echo1 none",
    ] {
        standin.find(part, |line| line.ends_with(part).then_some(()));
    }
    let ask = |arguments: &[&str]| gateway.cli(&[&["cloud", "enapter"], arguments, &["--url", &url]].concat());

    let (code, devices) = text(&ask(&["devices"]));
    assert_eq!(code, Some(0));
    let row = devices.lines().find(|line| line.starts_with("s--echo1 ")).unwrap();
    let words: Vec<_> = row.split_whitespace().collect();
    assert_eq!((&words[..4], words[5], words[6]), (&["s--echo1", "S01", "online", "Echo"][..], "0", "none"));
    let json: Json = serde_json::from_slice(&ask(&["devices", "--json"]).stdout).unwrap();
    assert_eq!(json["devices"].as_array().unwrap().len(), 3);

    let (code, samples) = text(&ask(&["samples", "s--echo1", "-n", "2"]));
    assert_eq!((code, samples.lines().count()), (Some(0), 2));
    assert!(samples.contains(" on=true label=null alerts=[]"), "{samples}");
    let sample: Json = serde_json::from_slice(&ask(&["samples", "s--echo1", "-n", "1", "--json"]).stdout).unwrap();
    assert!(sample["timestamp"].is_u64() && sample["count"].is_u64(), "{sample}");
    let (code, logs) = text(&ask(&["logs", "s--echo1"]));
    assert!(code == Some(0) && logs.contains(" info    starting for echo1 from 0"), "{logs}");

    let (code, output) = text(&ask(&["send-command", "s--echo1", "echo", "text=hi", "number=9"]));
    assert_eq!((code, output.as_str()), (Some(0), "log: echoing\nnumber: 9\ntext: \"hi\""));
    let json: Json = serde_json::from_slice(&ask(&["send-command", "s--echo1", "count", "--json"]).stdout).unwrap();
    assert_eq!(json["state"], "SUCCESS");
    for (arguments, code, expected) in [
        (&["send-command", "s--echo1", "refuse"][..], 1, "error: not today"),
        (&["send-command", "s--stuck", "act", "--timeout", "0.3"], 1, "error: timed out: the device did not answer"),
        (&["send-command", "s--none", "x"], 1, "error: no device \"s--none\"; expected one of: s, s--echo1, s--stuck"),
        (&["send-command", "s--echo1", "echo", "text"], 2, "error: invalid value 'text' for"),
        (&["samples", "a/b"], 1, "error: expected a channel id such as s--meter, found \"a/b\""),
        (&["logs"], 2, "error: the following required arguments were not provided"),
    ] {
        let (found, output) = text(&ask(arguments));
        assert!(found == Some(code) && output.starts_with(expected), "{arguments:?}: {found:?} {output}");
    }
    let failed = ask(&["send-command", "s--echo1", "refuse", "--json"]);
    let json: Json = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!((failed.status.code(), &json["state"]), (Some(1), &json!("ERROR")));
    standin.find("the command's state", |line| {
        line.contains(" command      S01:s--stuck act TIMEOUT after 300ms").then_some(())
    });

    crate::harness::must(Command::new("kill").arg(standin.process.id().to_string()));
    assert!(standin.process.wait().unwrap().success());
    let (code, output) = text(&ask(&["devices"]));
    assert_eq!(code, Some(1));
    assert_eq!(output, format!("error: no stand-in listens at {url}; start one with `sandgate cloud enapter`"));
}

#[test]
fn it_starts_with_json_for_machines_and_refuses_what_it_cannot_read() {
    let standin = Program::start(&["--json"]);
    let first = standin.find("the addresses", |line| serde_json::from_str::<Json>(line).ok());
    assert!(first["mqtt"].as_str().unwrap().starts_with("127.0.0.1:"));
    let http = first["http"].as_str().unwrap().strip_prefix("http://").unwrap();
    assert!(std::net::TcpStream::connect(http).is_ok());
    drop(std::net::TcpStream::connect(first["mqtt"].as_str().unwrap()).unwrap());
    let event = standin
        .find("an event", |line| serde_json::from_str::<Json>(line).ok().filter(|event| event["kind"] == "note"));
    assert_eq!(event["text"], "refused a connection: a client left without a CONNECT");

    let gateway = gateway();
    gateway.write("bad.yml", b"blueprint_spec: device/3.0\ndisplay_name: x\ntelemetry: 1\n");
    for (arguments, code, expected) in [
        (&["--blueprint", "none.yml"][..], 1, "error: reading none.yml: No such file or directory"),
        (&["--parent", "bad.yml"], 1, "error: reading blueprint bad.yml: 3:1: telemetry: "),
        (&["--hardware-id", "a/b"], 1, "error: hardware id: expected visible characters without /, + and #"),
        (&["--mqtt", "nowhere"], 2, "error: invalid value 'nowhere'"),
        (&["--command-timeout", "0s"], 2, "error: invalid value '0s'"),
    ] {
        let ports = ["cloud", "enapter", "--http", "127.0.0.1:0"];
        let (found, output) = text(&gateway.cli(&[&ports, arguments].concat()));
        assert!(found == Some(code) && output.starts_with(expected), "{arguments:?}: {found:?} {output}");
    }
}
