//! Blueprints of Lua scripts as drivers.

use std::process::Command;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{Broker, Gateway, Observer, SANDGATE, must, root};

const TELEMETRY: &str = "v1/from/S01/s--house/v1/telemetry";

/// The files of a blueprint in tests/fixtures/blueprints.
fn blueprint(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = root().join("tests/fixtures").join("blueprints").join(name);
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())).collect()
}

fn script() -> String {
    String::from_utf8(blueprint("house").into_iter().find(|(name, _)| name == "main.lua").unwrap().1).unwrap()
}

/// A device on Modbus TCP that has 42 everywhere.
async fn meter() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 12];
                while stream.read_exact(&mut request).await.is_ok() {
                    let answer = [&request[..4], &[0, 5, request[6], request[7], 2, 0, 42]].concat();
                    stream.write_all(&answer).await.unwrap();
                }
            });
        }
    });
    port
}

/// A web server that wants a form, gives a cookie by way of a redirect, and tells what it has seen.
async fn web() -> u16 {
    async fn answer(request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let of = |name: header::HeaderName| {
            parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        match (parts.method.as_str(), parts.uri.path()) {
            ("POST", "/login") => {
                let body = axum::body::to_bytes(body, 1000).await.unwrap();
                assert_eq!(of(header::CONTENT_TYPE), "application/x-www-form-urlencoded");
                assert_eq!(body, "user=a+b&word=%C3%BC%26%3D");
                let cookie = [(header::SET_COOKIE, "session=7; Path=/"), (header::LOCATION, "/welcome")];
                (StatusCode::FOUND, cookie).into_response()
            }
            ("GET", "/welcome") => "welcome".into_response(),
            ("GET", "/data") => {
                let seen = format!("{} {}", of(header::COOKIE), of(header::AUTHORIZATION));
                ([(header::CONTENT_TYPE, "application/json")], json!({ "seen": seen }).to_string()).into_response()
            }
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    port
}

/// A gateway with the blueprint as a folder.
async fn house(broker: &Broker) -> Gateway {
    let (meter, web) = (meter().await, web().await);
    let mut gateway = Gateway::prepare(&[]);
    std::fs::create_dir(gateway.path("house")).unwrap();
    for (name, bytes) in blueprint("house") {
        std::fs::write(gateway.path("house").join(name), bytes).unwrap();
    }
    let device = format!(
        "[devices.house]\ndriver = 'house'\nconfiguration.connection.conn_str = 'tcp://127.0.0.1:{meter}'\n\
         configuration.connection.web = 'http://127.0.0.1:{web}'\ngrants.tcp = ['127.0.0.1:{meter}']\n\
         grants.http = ['127.0.0.1:{web}']\nlimits.cpu = '300ms'\n"
    );
    gateway.start(broker.port, &device);
    gateway
}

fn sample(message: &crate::harness::Message, value: &Json) -> Option<Json> {
    message.on(TELEMETRY).filter(|sample| sample["value"] == *value)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_scripts_is_a_driver_and_a_save_swaps_it_in() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let gateway = house(&broker).await;
    observer.find("a value of the meter", |m| sample(m, &json!(42))).await;

    // A save is a swap; the runtime is compiled already.
    let save = |text: &str| std::fs::write(gateway.path("house").join("main.lua"), text).unwrap();
    save(&script().replace("local factor = 1", "local factor = 2"));
    observer.find("the value of the new script", |m| sample(m, &json!(84))).await;
    let receipts = gateway.json(&["swaps", "house"]);
    assert_eq!((&receipts[0]["outcome"], &receipts[0]["asked_by"]), (&json!("accepted"), &json!("file change")));

    // What is no Lua is refused with its line, and the one before goes on.
    save(&script().replace("local factor = 1", "local factor = = 1"));
    gateway.wait_for_log("main.lua:1: unexpected symbol near '='");
    let mark = observer.mark();
    observer.find_after(mark, "the script before", |m| sample(m, &json!(84))).await;
    save(&script());
    observer.find_after(mark, "the mended script", |m| sample(m, &json!(42))).await;
    assert_eq!(gateway.device("house")["crashes"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_speaks_http_and_an_endless_loop_costs_it_nothing_but_an_error() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let gateway = house(&broker).await;
    observer.find("a value of the meter", |m| sample(m, &json!(42))).await;
    let answer = observer.command("s--house", json!({"id": "1", "name": "login", "arguments": {}})).await;
    let seen = "session=7 Basic bWU6c2VjcmV0";
    let expected = json!({ "code": 200, "kind": "application/json", "seen": seen });
    assert_eq!((&answer["state"], &answer["payload"]), (&json!("completed"), &expected));

    let mark = observer.mark();
    let answer = observer.command("s--house", json!({"id": "2", "name": "forever", "arguments": {}})).await;
    assert_eq!(answer["state"], "error");
    assert!(answer.to_string().contains("used up its CPU time"), "{answer}");
    // It goes on with all that it knew.
    let after = observer.find_after(mark, "a sample after it", |m| sample(m, &json!(42))).await;
    assert!(after["runs"].as_u64().unwrap() > 1, "{after}");
    assert_eq!(gateway.device("house")["crashes"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_should_be_kept_is_marked_for_the_cloud() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let gateway = house(&broker).await;
    observer.find("a value of the meter", |m| sample(m, &json!(42))).await;
    // Nobody answers at another port, and none is granted.
    let other = script().replace("modbus.new(cfg.conn_str)", "modbus.new('tcp://127.0.0.1:1')");
    std::fs::write(gateway.path("house").join("main.lua"), other).unwrap();
    let line = |m: &crate::harness::Message| {
        let log = m.on("v1/from/S01/s--house/v3/logs")?;
        log["message"].as_str()?.starts_with("no answer: ").then_some(log)
    };
    let log = observer.find("the line", line).await;
    assert_eq!((&log["severity"], &log["persist"]), (&json!("error"), &json!(true)));
    assert!(log["message"].as_str().unwrap().contains("127.0.0.1:1 is not granted to this device"), "{log}");
}

#[test]
fn a_blueprint_is_built_from_a_folder_or_a_zip_and_keeps_its_scenarios() {
    let folder = tempfile::tempdir().unwrap();
    let thermometer = root().join("tests/fixtures").join("blueprints").join("thermometer");
    let own = folder.path().join("thermometer");
    must(Command::new("cp").arg("-r").arg(&thermometer).arg(&own));
    let zip = folder.path().join("thermometer.zip");
    let script = "import shutil, sys; shutil.make_archive(sys.argv[1][:-4], 'zip', sys.argv[2])";
    must(Command::new("python3").args(["-c", script]).arg(&zip).arg(&own));
    let (of_folder, of_zip) = (folder.path().join("a.wasm"), folder.path().join("b.wasm"));
    must(Command::new(SANDGATE).arg("build").arg(&own).arg("--output").arg(&of_folder));
    must(Command::new(SANDGATE).arg("build").arg(&zip).arg("--output").arg(&of_zip));
    assert_eq!(std::fs::read(&of_folder).unwrap(), std::fs::read(&of_zip).unwrap());
    let said = must(Command::new(SANDGATE).arg("test").arg(&own));
    assert!(said.contains("4 scenarios passed"), "{said}");
    let manifest = must(Command::new(SANDGATE).arg("blueprint").arg(&of_zip));
    assert!(manifest.contains("device/3.0") && manifest.contains("embedded"), "{manifest}");
    assert!(!manifest.contains("driver:"), "{manifest}");

    std::fs::write(own.join("parse.lua"), "return function( end").unwrap();
    let output = Command::new(SANDGATE).arg("build").arg(&own).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("parse.lua:1: "), "{said}");
}

/// A web server with a certificate that it has made itself.
fn own_certificate() -> u16 {
    use std::io::{Read, Write};
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["somewhere.else".to_owned()]).unwrap().self_signed(&key).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![own.der().clone()], key);
    let config = std::sync::Arc::new(config.unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = rustls::ServerConnection::new(std::sync::Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            // Whoever does not trust it hangs up.
            if stream.read(&mut [0; 4096]).is_ok() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi");
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_nobody_vouches_for_is_taken_where_the_operator_says_so() {
    let (broker, web) = (Broker::start(), own_certificate());
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[]);
    std::fs::create_dir(gateway.path("house")).unwrap();
    let manifest = "{blueprint_spec: device/3.0, display_name: X, runtime: {type: lua, options: {file: main.lua}}, \
                    telemetry: {value: {type: string, display_name: V}}}";
    gateway.write("house/manifest.yml", manifest.as_bytes());
    let script = format!(
        "local client = http.client({{ insecure_tls = true }})
         scheduler.add(200, function()
           local response, problem = client:get('https://127.0.0.1:{web}/')
           enapter.send_telemetry({{ value = response and response.body or tostring(problem) }})
         end)"
    );
    gateway.write("house/main.lua", script.as_bytes());
    let device = |more: &str| format!("[devices.house]\ndriver = 'house'\ngrants.http = ['127.0.0.1:{web}']\n{more}");
    gateway.start(broker.port, &device(""));
    let refused = observer.find("a refusal", |m| m.on(TELEMETRY)?["value"].as_str().map(str::to_owned)).await;
    assert!(refused.contains("certificate"), "{refused}");
    gateway.configure(broker.port, &device(&format!("grants.unverified_tls = ['127.0.0.1:{web}']\n")));
    observer.find("an answer", |m| sample(m, &json!("hi"))).await;
}
