//! `run --check`: what can be found without the field is found, with the line
//! to add.

use serde_json::Value as Json;

use crate::harness::{Gateway, fixture, fixture_with};

/// A gateway with a driver that asks for a Modbus line, a host by TCP and one by HTTP.
fn gateway() -> Gateway {
    let requests =
        "version: 1.0.0\n  requests:\n    modbus: [line]\n    tcp: [\"*:502\"]\n    http: [\"api.example.com:443\"]";
    let unit = "parameters:\n      unit:\n        type: integer\n        display_name: Unit\n        min: 1\n        default: 1";
    let asks = fixture_with("echo", "version: 1.0.0", requests);
    let manifest = sandgate::sandbox::inspect(&asks).unwrap().manifest.unwrap();
    let asks = sandgate::sandbox::embed_manifest(&fixture("echo"), &manifest.replacen("parameters:", unit, 1)).unwrap();
    Gateway::prepare(&[("asks.wasm", asks), ("echo.wasm", fixture("echo"))])
}

/// What is found about a place: levels, texts, lines to add.
fn findings(gateway: &Gateway, place: &str) -> (bool, Vec<(String, String, String)>) {
    let output = gateway.cli(&["run", "--check", "gateway.toml", "--json"]);
    let all: Json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let text = |finding: &Json, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let all = all.as_array().cloned().unwrap_or_default().into_iter().filter(|finding| finding["place"] == place);
    let all = all.map(|finding| (text(&finding, "level"), text(&finding, "text"), text(&finding, "add")));
    (output.status.success(), all.collect())
}

#[test]
fn what_is_missing_or_mistyped_is_found_with_its_place_and_the_line_to_add() {
    let gateway = gateway();
    let bus = "[buses.rs485.modbus_tcp]\naddress = '127.0.0.1:1'\n";
    let full = "grants.modbus.line = 'rs485'\ngrants.tcp = ['10.0.0.7:502']\ngrants.http = ['*.example.com:443']\n";
    for (device, place, level, text, add) in [
        // The places are those in the whole file, which begins with 7 lines of `configure`.
        ("", "devices", "warning", "there are none", "[devices.<id>]"),
        ("[devices.a]\ndriver = 'none.wasm'\n", "devices.a", "problem", "gateway.toml:10:1: devices.a.driver: ", ""),
        (
            "[devices.a]\ndriver = 'asks.wasm'\n",
            "devices.a",
            "problem",
            "devices.a.grants.modbus: the driver requests the Modbus line \"line\"",
            "grants.modbus.line = \"rs485\"",
        ),
        (
            "[devices.a]\ndriver = 'asks.wasm'\ngrants.modbus.lien = 'rs485'\n",
            "devices.a",
            "warning",
            "gateway.toml:11:15: devices.a.grants.modbus.lien: the driver requests no such line; did you mean \"line\"?",
            "",
        ),
        (
            "[devices.a]\ndriver = 'asks.wasm'\nconfiguration.main.label = '10.0.0.9'\n",
            "devices.a",
            "problem",
            "the driver requests to reach *:502 (tcp), and nothing of that is granted",
            "grants.tcp = [\"10.0.0.9:502\"]",
        ),
        (
            "[devices.a]\ndriver = 'asks.wasm'\n",
            "devices.a",
            "problem",
            "the driver requests to reach api.example.com:443 (http), and nothing of that is granted",
            "grants.http = [\"api.example.com:443\"]",
        ),
        (
            "[devices.a]\ndriver = 'echo.wasm'\ngrants.tcp = ['10.0.0.7:502']\n",
            "devices.a",
            "warning",
            "10.0.0.7:502 is granted, and the driver requests no such thing",
            "",
        ),
        (
            "[devices.a]\ndriver = 'echo.wasm'\nconfiguration.mian.label = 'x'\n",
            "devices.a",
            "problem",
            "gateway.toml:11:15: devices.a.configuration.mian: the manifest declares no such bucket; did you mean \"main\"?",
            "",
        ),
        (
            "[devices.a]\ndriver = 'echo.wasm'\nconfiguration.main.lable = 'x'\n",
            "devices.a",
            "problem",
            "gateway.toml:11:20: devices.a.configuration.main.lable: is not declared; did you mean \"label\"?",
            "",
        ),
        (
            &format!("[devices.a]\ndriver = 'asks.wasm'\n{full}[devices.b]\ndriver = 'asks.wasm'\n{full}"),
            "devices.b",
            "warning",
            "unit 1 of bus rs485 is also the unit of device a",
            "",
        ),
        (
            "[buses.port.modbus_rtu]\nport = '/dev/no-such-port'\n",
            "buses.port",
            "problem",
            "serial port /dev/no-such-port: No such file",
            "",
        ),
    ] {
        gateway.configure(1, &format!("{bus}{device}"));
        let (ended_well, found) = findings(&gateway, place);
        let is_it = |(of, says, adds): &(String, String, String)| {
            of == level && says.contains(text) && (adds.is_empty() == add.is_empty()) && adds.contains(add)
        };
        assert!(found.iter().any(is_it), "{device}: {found:#?}");
        assert!(ended_well || found.iter().any(|(level, ..)| level == "problem"), "{device}: {found:#?}");
        assert!(!found.iter().any(|(level, ..)| level == "ok"), "{device}: {found:#?}");
    }
    // What is granted, or denied on purpose, is fine.
    for grants in [full, "grants.modbus.line = 'rs485'\ngrants.tcp = []\ngrants.http = []\n"] {
        gateway.configure(1, &format!("{bus}[devices.a]\ndriver = 'asks.wasm'\n{grants}"));
        let (ended_well, found) = findings(&gateway, "devices.a");
        assert!(ended_well && found == [("ok".into(), "echo 1.0.0 is fine".into(), String::new())], "{found:#?}");
    }
}

#[test]
fn a_gateway_that_could_not_start_or_speak_is_found() {
    let gateway = gateway();
    std::fs::create_dir_all(gateway.path("taken/drivers")).unwrap();
    gateway.write("garbage.pem", b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n");
    let blob = base64(
        r#"{"mqtt_host":"h","mqtt_port":8883,"mqtt_ca":"x","mqtt_cert":"x","mqtt_private_key":"x","ucm_id":"V1","channel_id":"c"}"#,
    );
    let enapter = |name: &str| format!("[sessions.{name}.enapter]\nhost = 'h'\nhardware_id = 'S'\n");
    for (text, place, level, expected) in [
        (String::new(), "sessions", "warning", "there are none: nothing is sent to a cloud"),
        ("state = 'taken'".into(), "state", "problem", "taken: expected a new or an empty folder"),
        ("state = 'garbage.pem/x'".into(), "state", "problem", "garbage.pem: expected a folder, found something else"),
        (
            format!("{}tls = {{ ca = 'garbage.pem' }}", enapter("e")),
            "sessions.e",
            "problem",
            "gateway.toml:1:11: TLS: the CA chain holds a certificate that cannot be used",
        ),
        (
            format!("[sessions.e.enapter]\ncommunication_config = {{ value = '{blob}' }}"),
            "sessions.e",
            "problem",
            "gateway.toml:1:11: TLS: the CA chain: expected PEM certificates",
        ),
        (
            format!("{}{}", enapter("e"), enapter("f")),
            "sessions.f",
            "problem",
            "it has the client id of sessions.e: the broker lets only one of them connect",
        ),
        (
            "[sessions.k.kaa]\nhost = 'h'\napp_version = 'v1'\ntoken = { value = 'a/b' }".into(),
            "sessions.k",
            "problem",
            "gateway.toml:1:11: token: expected a text without /, +, #, dots and spaces",
        ),
        (
            "[sessions.k.kaa]\nhost = 'h'\napp_version = 'v1'\ntoken = { env = 'NO_SUCH_VARIABLE' }".into(),
            "sessions.k",
            "problem",
            "gateway.toml:1:11: reading token: reading environment variable NO_SUCH_VARIABLE",
        ),
    ] {
        gateway.write("gateway.toml", text.as_bytes());
        let (_, found) = findings(&gateway, place);
        assert!(found.iter().any(|(of, says, _)| of == level && says.contains(expected)), "{text}: {found:#?}");
    }
    // Nothing was made by looking.
    assert!(!gateway.path("sandgate-state").exists());
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
