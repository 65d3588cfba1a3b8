//! Connecting with what the cloud hands out: certificates or a password, in a
//! blob or in single settings.

use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value as Json, json};

use sandgate_test_needs::needs;

use crate::harness::{Broker, Gateway, Observer, fixture, free_port};

/// A private CA, a server certificate for another name, one that has expired, a client certificate.
pub struct Papers {
    pub ca: String,
    /// Certificate and key.
    pub server: (String, String),
    pub expired: (String, String),
    pub client: (String, String),
}

pub fn papers() -> Papers {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "private CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue_until = |name: &str, year: i32| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
    };
    let issue = |name: &str| issue_until(name, 2100);
    let expired = issue_until("not.this.host", 2020);
    Papers { ca: ca.pem(), server: issue("not.this.host"), expired, client: issue("device") }
}

fn blob(json: &Json) -> String {
    base64::engine::general_purpose::STANDARD.encode(json.to_string())
}

#[needs("mosquitto")]
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_with_certificates_connects_to_a_private_ca_whatever_the_name() {
    let (papers, stranger) = (papers(), papers());
    let plain = free_port();
    let lines = format!(
        "allow_anonymous true\ncafile FOLDER/ca\ncertfile FOLDER/cert\nkeyfile FOLDER/key\nrequire_certificate true\n\
         listener {plain} 127.0.0.1\nallow_anonymous true"
    );
    let files = [("ca", papers.ca.as_str()), ("cert", &papers.server.0), ("key", &papers.server.1)];
    let broker = Broker::mosquitto(&lines, &files);
    let observer = Observer::connect(plain).await;
    let v3 = |ca: &str, client: &(String, String)| {
        blob(&json!({"mqtt_host": "127.0.0.1", "mqtt_port": broker.port.to_string(), "mqtt_protocol": "MQTTS",
            "mqtt_credentials": {"private_key": client.1, "certificate": client.0, "ca_chain": ca},
            "hardware_id": "S01", "channel_id": "s"}))
    };
    let start = |blob: &str, more: &str| {
        let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("blob", blob.as_bytes().to_vec())]);
        let config = format!(
            "[sessions.main.enapter]\ncommunication_config = {{ file = 'blob' }}\n{more}\n\
             [devices.echo1]\ndriver = 'echo.wasm'\n"
        );
        gateway.write("gateway.toml", config.as_bytes());
        gateway.restart();
        gateway
    };
    let good = start(&v3(&papers.ca, &papers.client), "");
    observer.find("telemetry over TLS", |m| m.on("v1/from/S01/s--echo1/v1/telemetry")).await;
    drop(good);

    let named = start(&v3(&papers.ca, &papers.client), "verify_host_name = true");
    named.wait_for_log("invalid peer certificate: certificate not valid for name");
    let wrong_ca = start(&v3(&stranger.ca, &papers.client), "");
    wrong_ca.wait_for_log("invalid peer certificate: BadSignature");
    let stranger = start(&v3(&papers.ca, &stranger.client), "");
    stranger.wait_for_log("connecting again");
    for gateway in [&named, &wrong_ca, &stranger] {
        assert!(
            !gateway.log().contains("PRIVATE KEY") && !gateway.log().contains("BEGIN"),
            "secrets stay out of the log"
        );
    }
}

#[needs("mosquitto", "mosquitto_passwd")]
#[tokio::test(flavor = "multi_thread")]
async fn a_password_opens_the_broker_and_a_wrong_one_is_explained_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("passwords");
    crate::harness::must(
        std::process::Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&file).args(["dev", "hunter2"]),
    );
    let plain = free_port();
    let lines = format!(
        "allow_anonymous false\npassword_file FOLDER/passwords\nlistener {plain} 127.0.0.1\nallow_anonymous true"
    );
    let passwords = std::fs::read_to_string(&file).unwrap();
    let broker = Broker::mosquitto(&lines, &[("passwords", &passwords)]);
    let observer = Observer::connect(plain).await;
    let v3 = |password: &str| {
        blob(&json!({"mqtt_host": "127.0.0.1", "mqtt_port": broker.port,
            "mqtt_credentials": {"protocol": "MQTT", "username": "dev", "password": password},
            "hardware_id": "S01", "channel_id": "s"}))
    };
    for (password, good) in [("wrong-secret", false), ("hunter2", true)] {
        let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("blob", v3(password).into_bytes())]);
        let config = "[sessions.main.enapter]\ncommunication_config = { file = 'blob' }\n\
                      [devices.echo1]\ndriver = 'echo.wasm'\n";
        gateway.write("gateway.toml", config.as_bytes());
        gateway.restart();
        if good {
            observer.find("telemetry", |m| m.on("v1/from/S01/s--echo1/v1/telemetry")).await;
        } else {
            gateway.wait_for_log("the broker refused");
        }
        assert!(!gateway.log().contains(password), "secrets stay out of the log");
    }
}
