//! A changed configuration file is applied while the gateway runs; a broken
//! one is refused and the old one stays.

use serde_json::json;

use crate::harness::{Broker, Gateway, Observer, fixture};

const ONE: &str = "
[devices.one]
driver = 'echo.wasm'
configuration.main.interval_ms = 50
";

#[tokio::test(flavor = "multi_thread")]
async fn devices_come_go_and_change_while_the_others_run_on() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.start(broker.port, ONE);
    let announced = async |mark: usize, ids: &[&str]| {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        observer
            .find_after(mark, &format!("the children {ids:?}"), |m| {
                let children = m.on("v1/from/S01/s/v1/properties")?["children"].as_object()?.clone();
                (children.keys().cloned().collect::<Vec<_>>() == ids).then_some(())
            })
            .await;
    };
    announced(0, &["one"]).await;

    let mark = observer.mark();
    gateway.configure(broker.port, &format!("{ONE}\n[devices.two]\ndriver = 'echo.wasm'\n"));
    announced(mark, &["one", "two"]).await;
    // The new child is subscribed, too.
    let answer = observer.command("s--two", json!({"id": "1", "name": "echo", "arguments": {"text": "new"}})).await;
    assert_eq!(answer["state"], "completed");

    // A new parameter is handed to the running driver.
    let mark = observer.mark();
    gateway.configure(
        broker.port,
        &format!("{ONE}configuration.main.label = 'changed'\n[devices.two]\ndriver = 'echo.wasm'\n"),
    );
    observer
        .find_after(mark, "the new label", |m| {
            m.on("v1/from/S01/s--one/v1/telemetry").filter(|t| t["label"] == "changed")
        })
        .await;
    assert_eq!(gateway.log().matches("starting for one from").count(), 1, "the driver was not started afresh");

    // The driver itself may say no.
    gateway.configure(
        broker.port,
        &format!("{ONE}configuration.main.label = 'reject'\n[devices.two]\ndriver = 'echo.wasm'\n"),
    );
    gateway.wait_for_log("the driver rejected it: this label is not allowed; the old one stays");

    let mark = observer.mark();
    gateway.configure(broker.port, ONE);
    announced(mark, &["one"]).await;
    let counts: Vec<u64> =
        observer.all().iter().filter_map(|m| m.on("v1/from/S01/s--one/v1/telemetry")?["count"].as_u64()).collect();
    assert_eq!(counts, (1..=counts.len() as u64).collect::<Vec<_>>(), "device one never stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_configuration_is_refused_with_its_place_and_the_old_one_stays() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.start(broker.port, ONE);
    observer.find("the first sample", |m| m.on("v1/from/S01/s--one/v1/telemetry")).await;
    for (addition, expected) in [
        ("nonsense = 1", "unknown field `nonsense`"),
        ("limits.cpu = '5'", "expected a time above zero"),
        ("configuration.main.interval_ms = 0", "`interval_ms` stands here a second time"),
        ("configuration.main.label = 7", "devices.one.configuration.main.label: expected string, found 7"),
        (
            "configuration.main.nothing = 7",
            "devices.one.configuration.main.nothing: is not declared; expected one of \"interval_ms\", \"label\"",
        ),
        (
            "grants.modbus.line = 'x'",
            "devices.one.grants.modbus.line: no bus \"x\"; none is configured, expected a table [buses.x]",
        ),
    ] {
        gateway.configure(broker.port, &format!("{ONE}{addition}\n"));
        gateway.wait_for_log(expected);
        assert!(gateway.log().contains("the new configuration is refused, the old one stays"));
    }
    let before = gateway.device("one")["samples"].as_u64().unwrap();
    gateway.wait_for_samples("one", before + 3);
    // A missing file is as good as a broken one, and a good one is taken again.
    std::fs::remove_file(gateway.path("gateway.toml")).unwrap();
    gateway.wait_for_log("reading configuration gateway.toml");
    gateway.configure(broker.port, &format!("{ONE}configuration.main.label = 'fine'"));
    observer.find("the label", |m| m.on("v1/from/S01/s--one/v1/telemetry").filter(|t| t["label"] == "fine")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_driver_at_the_start_harms_only_its_device_and_a_good_file_cures_it() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("broken.wasm", b"nonsense".to_vec())]);
    let two = format!("{ONE}[devices.two]\ndriver = 'broken.wasm'\ntype = 'echo'\n");
    gateway.start(broker.port, &two);
    observer.find("the good device", |m| m.on("v1/from/S01/s--one/v1/telemetry")).await;
    let problem = gateway.wait_for_device("two", "its problem", |device| device["problem"].as_str().map(str::to_owned));
    assert!(problem.contains("broken.wasm: expected a WebAssembly component, found something else"), "{problem}");
    let answer = observer.command("s--two", json!({"id": "1", "name": "echo"})).await;
    assert_eq!(answer["payload"]["message"], "the driver of this device is not running");
    gateway.write("broken.wasm", &fixture("echo"));
    observer.find("the cured device", |m| m.on("v1/from/S01/s--two/v1/telemetry")).await;
    // A file that breaks later: at the next start the last good driver runs.
    gateway.terminate();
    gateway.write("broken.wasm", b"nonsense again");
    gateway.restart();
    gateway.wait_for_device("two", "the last good driver", |device| (device["phase"] == "running").then_some(()));
    gateway.wait_for_log("and not the configured file");
    assert!(gateway.is_alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_values_survive_and_two_gateways_do_not_share_a_state_folder() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.start(broker.port, ONE);
    observer.find("the first sample", |m| m.on("v1/from/S01/s--one/v1/telemetry")).await;
    assert_eq!(observer.command("s--one", json!({"id": "1", "name": "store"})).await["state"], "completed");
    use std::os::unix::fs::PermissionsExt;
    let mode = |name: &str| std::fs::metadata(gateway.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("sandgate-state"), mode("sandgate-state/admin.sock")), (0o700, 0o600));
    let second = gateway.cli(&["run", "gateway.toml"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another gateway uses it"));
    // What a kill leaves behind does not hinder the next start.
    gateway.kill();
    gateway.restart();
    gateway.wait_for_samples("one", 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_would_take_the_site_apart_is_refused() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.start(broker.port, ONE);
    observer.find("the first sample", |m| m.on("v1/from/S01/s--one/v1/telemetry")).await;
    gateway.overwrite("gateway.toml", b"");
    gateway.wait_for_log("devices: there are none; stop the gateway to stop them all");
    gateway.configure(broker.port, ONE);
    let renamed =
        std::fs::read_to_string(gateway.path("gateway.toml")).unwrap().replace("sessions.main", "sessions.other");
    gateway.write("gateway.toml", renamed.as_bytes());
    gateway.wait_for_log("devices.one.session: session \"other\" starts with the next start of the gateway");
    // Other settings with a driver that does not take the configuration: it goes on as it was.
    gateway.configure(broker.port, &format!("{ONE}configuration.main.label = 1\nlimits.cpu = '1s'\n"));
    gateway.wait_for_log("devices.one.configuration.main.label: expected string, found 1");
    let before = gateway.device("one")["samples"].as_u64().unwrap();
    gateway.wait_for_samples("one", before + 3);
    for message in observer.all() {
        if let Some(greeting) = message.on("v1/from/S01/s/v1/properties") {
            assert_eq!(greeting["children"], json!({"one": {"type": "echo"}}));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_come_while_a_device_starts_afresh_are_carried_out() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    let device = |limit: u32| {
        format!("[devices.echo1]\ndriver = 'echo.wasm'\nlimits.telemetry = '{limit}/s'\nlimits.logs = '1000/s'\n")
    };
    gateway.start(broker.port, &device(1000));
    gateway.wait_for_log("connected to");
    for number in 1..=40 {
        let id = format!("n{number}");
        if number % 4 == 0 {
            gateway.configure(broker.port, &device(1000 + number));
        }
        let request = json!({"id": id, "name": "echo", "arguments": {"text": id}});
        let answer = observer.command("s--echo1", request).await;
        assert_eq!((&answer["state"], &answer["payload"]["text"]), (&json!("completed"), &json!(id)), "{answer}");
    }
    assert_eq!(gateway.device("echo1")["commands"], 40);
}
