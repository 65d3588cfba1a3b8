//! The stand-in of Kaa against clients that nobody here wrote (Debian's mosquitto clients), by the examples of the
//! public topic list; and its command line.

mod device;
mod faults;
mod program;
mod routing;

use std::process::Command;

use serde_json::{Value as Json, json};

use self::program::{Listener, StandIn, body_of, publish};
use sandgate_test_needs::needs;

use crate::harness::{SANDGATE, until};

/// What the examples leave behind is known beforehand, so each can be checked in full.
const EXAMPLES: &[(&str, &str, &str, &str)] = &[
    // Data collection.
    (
        "dcx/T/json/42",
        r#"{"temperature":21,"humidity":73,"location":{"lat":34.1340258,"lon":-118.3238652}}"#,
        "status",
        "",
    ),
    (
        "dcx/T/json/43",
        r#"[{"ts":"2019-04-26T15:41:07+0000","temperature":21},{"ts":"2019-04-26T16:41:07+0000","temperature":21.5}]"#,
        "status",
        "",
    ),
    ("dcx/T/plain/humidity/44", "55%", "status", ""),
    // Metadata.
    ("epmx/T/update/9", r#"{"deviceModel":"example model","name":"Sensor 1"}"#, "status", ""),
    ("epmx/T/get/keys/7", "", "status", r#"["deviceModel","name"]"#),
    ("epmx/T/get/8", r#"{"keys":["name"]}"#, "status", r#"{"name":"Sensor 1"}"#),
    ("epmx/T/update/keys/10", r#"{"deviceModel":"new model"}"#, "status", ""),
    ("epmx/T/get/11", "", "status", r#"{"deviceModel":"new model","name":"Sensor 1"}"#),
    ("epmx/T/delete/keys/12", r#"["deviceModel","areaId"]"#, "status", ""),
    // Commands.
    ("cex/T/command/turn_on/1", r#"{"observe":true}"#, "status", "[]"),
    (
        "cex/T/result/turn_on/2",
        r#"[{"id":1,"statusCode":200,"reasonPhrase":"Ok","payload":{"engine_on":true}}]"#,
        "error",
        r#"{"statusCode":404,"reasonPhrase":"turn_on 1: no such command is pending"}"#,
    ),
    // Configuration.
    ("cmx/T/config/json/5", "{}", "status", r#"{"configId":"","statusCode":200,"reasonPhrase":"OK","config":null}"#),
    ("cmx/T/applied/json/6", r#"{"configId":"97016dbe8bb4adff8f754ecbf24612f2"}"#, "status", ""),
    // Software.
    (
        "cmx_ota/T/config/json/29",
        r#"{"observe":true}"#,
        "status",
        r#"{"statusCode":304,"reasonPhrase":"Not Modified"}"#,
    ),
    ("cmx_ota/T/applied/json/30", r#"{"configId":"0.0.2"}"#, "status", ""),
    // Further extensions.
    ("rsx/T/dcx/42", "", "status", r#"{"requestId":42,"statusCode":200,"reasonPhrase":"Ok"}"#),
];

#[needs("mosquitto_sub")]
#[test]
fn generic_clients_get_every_example_of_the_topic_list() {
    let stand_in = StandIn::start(&[]);
    for (version, qos) in [("311", "0"), ("311", "1"), ("5", "1"), ("31", "1"), ("311", "2")] {
        let token = format!("T{version}{qos}");
        let listener = Listener::start(&stand_in, version, &[&format!("kp1/a-v1/+/{token}/#")]);
        for (resource, payload, end, body) in EXAMPLES {
            let request = format!("kp1/a-v1/{}", resource.replace("/T/", &format!("/{token}/")));
            publish(&stand_in, version, qos, &request, payload);
            let answer = listener.wait(&format!("{request}/{end}"));
            assert_eq!(answer, *body, "{request} over MQTT {version}");
        }
        // QoS 1, so that one is done before the next. Without a request id a confirmation is not sent, and data go to the topic of pushes.
        for resource in ["dcx/T/json", "epmx/T/update/keys", "cmx/T/applied/json", "dcx/T/plain/humidity"] {
            let payload = if resource.contains("plain") { "1m" } else { r#"{"configId":"x"}"# };
            publish(
                &stand_in,
                version,
                "1",
                &format!("kp1/a-v1/{}", resource.replace("/T/", &format!("/{token}/"))),
                payload,
            );
        }
        for resource in ["cex/T/command/turn_off", "cmx/T/config/json", "bcx/T/token", "tsx/T"] {
            let request = format!("kp1/a-v1/{}", resource.replace('T', &token));
            publish(&stand_in, version, qos, &request, "");
            let answer = listener.wait(&format!("{request}/status"));
            assert!(serde_json::from_str::<Json>(&answer).is_ok(), "{request}: {answer}");
        }
        let silent = listener.seen().into_iter().filter(|(topic, _)| topic.ends_with("json/status"));
        assert!(silent.clone().all(|(topic, _)| topic.contains("config")), "{:?}", silent.collect::<Vec<_>>());

        let samples = stand_in.json(&["samples", &token]);
        let values: Vec<&Json> = samples.iter().map(|sample| &sample["value"]).collect();
        assert_eq!(values[0]["location"]["lat"], json!(34.1340258));
        assert_eq!((values.len(), &values[2]["temperature"]), (6, &json!(21.5)));
        assert_eq!(values[3], &json!({"humidity-value": 55, "humidity-unit": "%"}));
        assert_eq!(values[5], &json!({"humidity-value": 1, "humidity-unit": "m"}));
        assert_eq!(stand_in.json(&["metadata", &token])[0], json!({"name": "Sensor 1", "configId": "x"}));
    }
}

#[needs("mosquitto_sub")]
#[test]
fn bad_input_gets_one_clear_error_and_loses_nothing_else() {
    let stand_in = StandIn::start(&["--hidden", "secret", "--read-only", "serial"]);
    let listener = Listener::start(&stand_in, "311", &["kp1/#"]);
    publish(&stand_in, "311", "1", "kp1/a-v1/dcx/T/json/1", r#"{"good":1}"#);
    publish(&stand_in, "311", "1", "kp1/a-v1/epmx/T/update/2", r#"{"name":"x"}"#);
    listener.wait("kp1/a-v1/epmx/T/update/2/status");
    let deep = "[".repeat(50_000);
    for (resource, payload, status, words) in [
        ("dcx/T/json/10", "{", 400, "payload: EOF"),
        ("dcx/T/json/11", "", 400, "expected JSON"),
        ("dcx/T/json/12", deep.as_str(), 400, "recursion"),
        ("dcx/T/xml/13", "1", 404, "json or plain"),
        ("dcx/T/plain/a/14", "hot", 400, "expected a number"),
        ("epmx/T/update/15", "{}", 400, "at least one key"),
        ("epmx/T/update/16", r#"{"a b":1}"#, 400, "a-z"),
        ("epmx/T/update/17", r#"{"serial":1}"#, 403, "serial"),
        ("epmx/T/get/18", r#"{"keys":["secret"]}"#, 403, "secret"),
        ("epmx/T/delete/keys/19", r#"{"a":1}"#, 400, "array"),
        ("epmx/T/put/20", "{}", 404, "get, get/keys"),
        ("cex/T/command/x/21", r#"{"observe":"yes"}"#, 400, "boolean"),
        ("cex/T/command/22", "{}", 404, "command/<type>"),
        ("cex/T/result/x/23", r#"{"id":1,"statusCode":200}"#, 400, "array"),
        ("cex/T/result/x/24", r#"[{"statusCode":200}]"#, 400, "id: expected"),
        ("cmx/T/config/json/25", r#"{"config":1}"#, 400, "unknown key"),
        ("cmx/T/applied/json/26", "{}", 400, "configId"),
        ("cmx/T/applied/yaml/27", "{}", 404, "applied/json"),
        ("cmx_ota/T/applied/json/28", r#"{"configId":7}"#, 400, "string"),
        ("bcx/T/upload/29", "", 404, "token"),
        ("rsx/T/dcx/99", "", 404, "99"),
        ("tsx/T/30", r#"{"timezone":"Mars"}"#, 404, "Mars"),
        ("adx/T/json/31", "{}", 404, "dcx, epmx"),
        ("dcx/a.b/json/32", "{}", 400, "token"),
        ("dcx/T/json/99999999999", "{}", 400, "2147483647"),
    ] {
        let request = format!("kp1/a-v1/{resource}");
        publish(&stand_in, "311", "1", &request, payload);
        let error: Json = serde_json::from_str(&listener.wait(&format!("{request}/error"))).unwrap();
        assert_eq!(error["statusCode"], json!(status), "{request} {error}");
        let reason = error["reasonPhrase"].as_str().unwrap();
        assert!(reason.contains(words), "{request}: {reason}");
    }
    // Other app versions and no kp1 at all: the connection lives, the log tells.
    publish(&stand_in, "311", "1", "some/other/topic", "x");
    publish(&stand_in, "311", "1", "kp1/A/dcx/T/json/33", "1");
    assert!(listener.wait("kp1/A/dcx/T/json/33/error").contains("a-z"));
    stand_in.wait_for_event("no kp1 topic");
    publish(&stand_in, "311", "1", "kp1/a-v1/dcx/T/json/50", r#"{"good":2}"#);
    assert_eq!(listener.wait("kp1/a-v1/dcx/T/json/50/status"), "");
    let samples: Vec<Json> = stand_in.json(&["samples", "T"]).iter().map(|sample| sample["value"].clone()).collect();
    assert_eq!(samples, [json!({"good": 1}), json!({"good": 2})]);
    assert_eq!(stand_in.json(&["metadata", "T"])[0], json!({"name": "x"}));
    // One error each.
    let errors = listener.seen().into_iter().filter(|(topic, _)| topic.ends_with("/error")).count();
    assert_eq!(errors, 26);
}

#[needs("mosquitto_sub")]
#[test]
fn a_command_goes_to_a_generic_client_and_its_result_comes_back() {
    let stand_in = StandIn::start(&[]);
    publish(&stand_in, "311", "1", "kp1/a-v1/cex/T/command/reboot/1", r#"{"observe":true}"#);
    let listener = Listener::start(&stand_in, "311", &["kp1/a-v1/cex/T/command/#", "kp1/a-v1/cex/T/result/#"]);
    let caller = Command::new(SANDGATE)
        .args([
            "cloud",
            "kaa",
            "send-command",
            "T",
            "reboot",
            r#"{"delay":5}"#,
            "--await",
            "60",
            "--url",
            &stand_in.url(),
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let push: Json = serde_json::from_str(&listener.wait("kp1/a-v1/cex/T/command/reboot/status")).unwrap();
    assert_eq!(push[0]["payload"], json!({"delay": 5}));
    // It is still listed for who asks, and once only.
    publish(&stand_in, "311", "1", "kp1/a-v1/cex/T/command/reboot/2", "{}");
    assert_eq!(body_of(&listener.wait("kp1/a-v1/cex/T/command/reboot/2/status")), push);
    let result =
        json!([{"id": push[0]["id"], "statusCode": 200, "reasonPhrase": "OK", "payload": "Success"}]).to_string();
    publish(&stand_in, "311", "1", "kp1/a-v1/cex/T/result/reboot/3", &result);
    assert_eq!(listener.wait("kp1/a-v1/cex/T/result/reboot/3/status"), "");
    let output = caller.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200 OK \"Success\"\n");
    // The same result again is tolerated, and the command is not listed any more.
    publish(&stand_in, "311", "1", "kp1/a-v1/cex/T/result/reboot/4", &result);
    assert_eq!(listener.wait("kp1/a-v1/cex/T/result/reboot/4/status"), "");
    publish(&stand_in, "311", "1", "kp1/a-v1/cex/T/command/reboot/5", "{}");
    assert_eq!(listener.wait("kp1/a-v1/cex/T/command/reboot/5/status"), "[]");

    // Without a result in time the caller fails; a failure of the device fails it, too.
    let output = stand_in.cli(&["send-command", "T", "reboot", "--await", "0.05"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("no result in time"));
    for (arguments, code, words) in [
        (vec!["send-command", "T", "reboot", "{delay"], 1, "payload: expected JSON"),
        (vec!["send-command", "nobody", "reboot"], 1, "endpoint nobody: not known"),
        (vec!["send-command", "T", "re/boot"], 1, "command type"),
        (vec!["send-command", "T", "reboot", "--await", "100"], 1, "0 to 60 seconds"),
        (vec!["send-command", "T"], 2, "Usage"),
        (vec!["token", "T", "sleeping"], 2, "possible values"),
        (vec!["fault", "nonsense"], 1, "there are status-late"),
        (vec!["put-config", "T", "{"], 1, "configuration: expected JSON"),
        (vec!["put-config", "T", "@/nowhere"], 1, "reading configuration /nowhere"),
        (vec!["samples", "nobody"], 1, "not known"),
    ] {
        let output = stand_in.cli(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
}

#[needs("mosquitto_sub")]
#[test]
fn a_configuration_is_pushed_applied_and_rejected() {
    let stand_in = StandIn::start(&[]);
    assert!(stand_in.cli(&["token", "T", "active", "--app-version", "a-v1"]).status.success());
    let listener = Listener::start(&stand_in, "5", &["kp1/a-v1/cmx/T/config/json/#"]);
    let first = stand_in.json(&["put-config", "T", r#"{"interval":60}"#])[0]["configId"].clone();
    let expected = json!({"configId": first, "statusCode": 200, "reasonPhrase": "OK", "config": {"interval": 60}});
    assert_eq!(body_of(&listener.wait("kp1/a-v1/cmx/T/config/json/status")), expected);
    publish(&stand_in, "5", "1", "kp1/a-v1/cmx/T/config/json/5", r#"{"observe":true}"#);
    assert_eq!(body_of(&listener.wait("kp1/a-v1/cmx/T/config/json/5/status")), expected);
    let rejected = json!({"configId": first, "statusCode": 400, "reasonPhrase": "WPA2 is not supported"}).to_string();
    publish(&stand_in, "5", "1", "kp1/a-v1/cmx/T/applied/json", &rejected);
    stand_in.wait_for_event("WPA2 is not supported");
    // An id in a request is an implicit report, and what is known is not sent.
    publish(&stand_in, "5", "1", "kp1/a-v1/cmx/T/config/json/6", &json!({"configId": first}).to_string());
    let unchanged = json!({"statusCode": 304, "reasonPhrase": "Not Modified"});
    assert_eq!(body_of(&listener.wait("kp1/a-v1/cmx/T/config/json/6/status")), unchanged);
    stand_in.wait_for_event("Implicitly applied");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, r#"{"rooms":2}"#).unwrap();
    let argument = format!("@{}", file.display());
    assert!(stand_in.cli(&["put-config", "T", &argument, "--name", "rooms"]).status.success());
    assert_eq!(body_of(&listener.wait("kp1/a-v1/cmx/T/config/json/rooms/status"))["config"], json!({"rooms": 2}));
}

#[needs("mosquitto_sub")]
#[test]
fn software_is_offered_fetched_and_reported() {
    let stand_in = StandIn::start(&[]);
    let listener = Listener::start(&stand_in, "311", &["kp1/a-v1/cmx_ota/T/#"]);
    publish(&stand_in, "311", "1", "kp1/a-v1/cmx_ota/T/applied/json", r#"{"configId":"1.0.0"}"#);
    until("the report", || (stand_in.json(&["endpoints"])[0][0]["software"] == "1.0.0").then_some(()));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fw-1.0.1.bin");
    std::fs::write(&file, b"not really software").unwrap();
    let offered = stand_in.json(&["offer-software", "T", "1.0.1", file.to_str().unwrap(), "--from", "1.0.0"]);
    let specification = &offered[0]["specification"];
    assert_eq!(specification["size"], json!(19));
    assert_eq!(specification["checksum"], specification["sha256"]);
    publish(&stand_in, "311", "1", "kp1/a-v1/cmx_ota/T/config/json/29", r#"{"observe":true}"#);
    let answer = body_of(&listener.wait("kp1/a-v1/cmx_ota/T/config/json/29/status"));
    assert_eq!((&answer["configId"], &answer["config"]), (&json!("1.0.1"), specification));
    let path = specification["link"].as_str().unwrap().strip_prefix(&stand_in.url()).unwrap();
    let fetched = routing::call(([127, 0, 0, 1], stand_in.http).into(), "GET", path, "");
    let fetched = tokio::runtime::Runtime::new().unwrap().block_on(fetched);
    assert_eq!(fetched.body, "not really software");
    publish(&stand_in, "311", "1", "kp1/a-v1/cmx_ota/T/applied/json/30", r#"{"configId":"1.0.1"}"#);
    listener.wait("kp1/a-v1/cmx_ota/T/applied/json/30/status");
    publish(&stand_in, "311", "1", "kp1/a-v1/cmx_ota/T/config/json/31", "{}");
    let unchanged = json!({"statusCode": 304, "reasonPhrase": "Not Modified"});
    assert_eq!(body_of(&listener.wait("kp1/a-v1/cmx_ota/T/config/json/31/status")), unchanged);
    let elsewhere = stand_in.json(&["offer-software", "T", "1.0.2", "--link", "http://files.example/fw.bin"]);
    assert_eq!(elsewhere[0]["specification"], json!({"link": "http://files.example/fw.bin"}));
}

#[needs("mosquitto_pub")]
#[test]
fn the_program_starts_with_the_options_that_its_help_names() {
    let stand_in = StandIn::start(&[
        "--app-version",
        "a-v1=kettles",
        "--no-provisioning",
        "--strict-path",
        "--fault",
        "status-late=10ms,ext=dcx",
        "--user",
        "me@tenant:secret",
    ]);
    assert_eq!(stand_in.json(&["fault"])[0]["faults"], json!(["status-late=10ms,ext=dcx"]));
    assert!(stand_in.cli(&["fault", "--clear=status-late", "status-missing,times=2"]).status.success());
    assert_eq!(stand_in.json(&["fault"])[0]["faults"], json!(["status-missing,times=2"]));
    assert_eq!(stand_in.json(&["fault", "--clear"])[0]["faults"], json!([]));
    assert!(stand_in.cli(&["token", "T", "active", "--app-version", "a-v1"]).status.success());
    let output = stand_in.cli(&["token", "U", "active", "--app-version", "b-v1"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("app version b-v1: not known"));
    assert_eq!(stand_in.json(&["endpoints"])[0][0]["application"], json!("kettles"));
    let text = stand_in.cli(&["endpoints"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("ENDPOINT"));
    let publish = |user: &[&str]| {
        let port = stand_in.mqtt.to_string();
        let mut command = Command::new("mosquitto_pub");
        command.args(["-p", &port, "-q", "1", "-t", "kp1/a-v1/dcx/T/json", "-m", "1"]).args(user);
        command.output().unwrap().status.success()
    };
    assert!(!publish(&[]));
    assert!(!publish(&["-u", "me@tenant", "-P", "wrong"]));
    assert!(publish(&["-u", "me@tenant", "-P", "secret"]));
    until("the sample", || (stand_in.json(&["samples", "T"]).len() == 1).then_some(()));
    // Another one cannot take the same port, and says so.
    let port = format!("127.0.0.1:{}", stand_in.mqtt);
    let output = Command::new(SANDGATE).args(["cloud", "kaa", "--mqtt", &port]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("listening on {port}")));
}
