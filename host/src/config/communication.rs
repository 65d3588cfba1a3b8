//! Enapter's communication config: the base64 JSON blob that a device gets
//! from the cloud, in its versions v3 and v1, and the same facts from single
//! settings.
//!
//! Formats: research notes on the Enapter Python SDK, `standalone/config.py`.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::{EnapterSession, Secret, Source, TlsFiles};

/// Padding or not: both are seen in the wild.
const BLOB: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// All that is needed to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// How to authenticate.
    pub credentials: Credentials,
    /// TLS, or none for plain MQTT.
    pub tls: Option<Tls>,
}

/// All that is needed to connect to Enapter and to build topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Communication {
    /// Where and as whom to connect.
    pub broker: Broker,
    /// The parent's hardware id.
    pub hardware_id: String,
    /// The parent's channel id.
    pub channel_id: String,
    /// A v1 blob: the channel `ucm` must be kept alive as well.
    pub needs_ucm: bool,
}

/// How the device proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing, or the certificate in `Tls`.
    None,
    /// User name and password.
    Password(String, Secret),
}

/// PEM texts for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificates that the server's chain must end in; none for those
    /// that the system trusts.
    pub ca: Option<String>,
    /// The client's certificate chain and private key.
    pub client: Option<(String, Secret)>,
    /// Whether the server certificate must carry the host name.
    pub verify_host_name: bool,
}

#[derive(Deserialize)]
struct BlobV3 {
    mqtt_host: String,
    mqtt_port: Port,
    mqtt_protocol: Option<String>,
    mqtt_credentials: BlobCredentials,
    hardware_id: String,
    channel_id: String,
}

#[derive(Deserialize)]
struct BlobCredentials {
    protocol: Option<String>,
    username: Option<String>,
    password: Option<Secret>,
    private_key: Option<Secret>,
    certificate: Option<String>,
    ca_chain: Option<String>,
}

#[derive(Deserialize)]
struct BlobV1 {
    mqtt_host: String,
    mqtt_port: Port,
    mqtt_ca: String,
    mqtt_cert: String,
    mqtt_private_key: Secret,
    ucm_id: String,
    channel_id: String,
}

/// The cloud writes the port as a number or as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Text(String),
}

impl Port {
    fn number(&self) -> Result<u16> {
        match self {
            Port::Number(port) => Ok(*port),
            Port::Text(text) => text.parse().map_err(|_| anyhow!("mqtt_port: expected 1 to 65535")),
        }
    }
}

impl Communication {
    /// Puts together what a session needs from the blob and the settings.
    pub fn load(session: &EnapterSession, folder: &Path) -> Result<Communication> {
        let mut communication = match &session.communication_config {
            Some(source) => {
                let blob = source.read(folder).context("reading communication_config")?;
                Communication::from_blob(&blob).context("parsing communication_config")?
            }
            None => Communication {
                broker: Broker {
                    host: session.host.clone().unwrap_or_default(),
                    port: default_port(session.tls.is_some()),
                    credentials: Credentials::None,
                    tls: None,
                },
                hardware_id: session.hardware_id.clone().unwrap_or_default(),
                channel_id: "s".into(),
                needs_ucm: false,
            },
        };
        let broker = &mut communication.broker;
        if let Some(host) = &session.host {
            broker.host.clone_from(host);
        }
        if let Some(port) = session.port {
            broker.port = port;
        }
        if let Some(id) = &session.hardware_id {
            communication.hardware_id.clone_from(id);
        }
        if let Some(id) = &session.channel_id {
            communication.channel_id.clone_from(id);
        }
        let login = Login { username: session.username.as_ref(), password: session.password.as_ref() };
        if let Some(credentials) = login.read(folder)? {
            broker.credentials = credentials;
        }
        if let Some(files) = &session.tls {
            broker.tls = Some(read_tls(files, folder)?);
        }
        if let Some(tls) = &mut broker.tls {
            tls.verify_host_name = session.verify_host_name;
        }
        Ok(communication)
    }

    /// Decodes a blob. The error never repeats what the blob holds.
    pub fn from_blob(blob: &Secret) -> Result<Communication> {
        // `base64` wraps its lines unless told not to.
        let text: String = blob.0.split_whitespace().collect();
        let bytes = BLOB.decode(&text).map_err(|_| anyhow!("expected base64 text as the Enapter CLI prints it"))?;
        let json: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|error| anyhow!("expected JSON inside the base64: {}", place_of(&error)))?;
        // Only v1 names a UCM.
        if json.get("ucm_id").is_some() { Communication::from_v1(json) } else { Communication::from_v3(json) }
    }

    /// The password and the private key that it holds.
    pub fn secrets(&self) -> Vec<Secret> {
        let password = match &self.broker.credentials {
            Credentials::Password(_, password) => Some(password.clone()),
            Credentials::None => None,
        };
        let key = self.broker.tls.as_ref().and_then(|tls| tls.client.as_ref()).map(|(_, key)| key.clone());
        password.into_iter().chain(key).collect()
    }

    fn from_v3(json: serde_json::Value) -> Result<Communication> {
        let blob: BlobV3 = serde_json::from_value(json).map_err(hide_values)?;
        let credentials = blob.mqtt_credentials;
        let protocol = blob.mqtt_protocol.or(credentials.protocol).unwrap_or_else(|| "MQTTS".into());
        let (login, tls) = match protocol.to_ascii_uppercase().as_str() {
            "MQTT" => {
                let login = match (credentials.username, credentials.password) {
                    (Some(user), Some(password)) => Credentials::Password(user, password),
                    _ => bail!("mqtt_credentials: expected username and password for protocol MQTT"),
                };
                (login, None)
            }
            "MQTTS" => {
                let (Some(key), Some(certificate), Some(ca)) =
                    (credentials.private_key, credentials.certificate, credentials.ca_chain)
                else {
                    bail!("mqtt_credentials: expected private_key, certificate and ca_chain for protocol MQTTS");
                };
                let client = Some((pem(&certificate), Secret(pem(&key.0))));
                (Credentials::None, Some(Tls { ca: Some(pem(&ca)), client, verify_host_name: false }))
            }
            _ => bail!("mqtt_protocol: expected \"MQTT\" or \"MQTTS\""),
        };
        Ok(Communication {
            broker: Broker { host: blob.mqtt_host, port: blob.mqtt_port.number()?, credentials: login, tls },
            hardware_id: topic_level(blob.hardware_id, "hardware_id")?,
            channel_id: topic_level(blob.channel_id, "channel_id")?,
            needs_ucm: false,
        })
    }

    fn from_v1(json: serde_json::Value) -> Result<Communication> {
        let blob: BlobV1 = serde_json::from_value(json).map_err(hide_values)?;
        let client = Some((pem(&blob.mqtt_cert), Secret(pem(&blob.mqtt_private_key.0))));
        let tls = Some(Tls { ca: Some(pem(&blob.mqtt_ca)), client, verify_host_name: false });
        let (host, port) = (blob.mqtt_host, blob.mqtt_port.number()?);
        Ok(Communication {
            broker: Broker { host, port, credentials: Credentials::None, tls },
            hardware_id: topic_level(blob.ucm_id, "ucm_id")?,
            channel_id: topic_level(blob.channel_id, "channel_id")?,
            needs_ucm: true,
        })
    }
}

/// A user name and where its password is.
pub(super) struct Login<'a> {
    pub username: Option<&'a String>,
    pub password: Option<&'a Source>,
}

impl Login<'_> {
    fn read(&self, folder: &Path) -> Result<Option<Credentials>> {
        let (Some(user), Some(password)) = (self.username, self.password) else { return Ok(None) };
        let password = password.read(folder).context("reading password")?;
        Ok(Some(Credentials::Password(user.clone(), password)))
    }
}

/// Puts together what is needed to connect from single settings.
pub(super) fn broker(
    host: &str,
    port: Option<u16>,
    login: Login<'_>,
    tls: Option<&TlsFiles>,
    folder: &Path,
) -> Result<Broker> {
    Ok(Broker {
        host: host.to_owned(),
        port: port.unwrap_or_else(|| default_port(tls.is_some())),
        credentials: login.read(folder)?.unwrap_or(Credentials::None),
        tls: tls.map(|files| read_tls(files, folder)).transpose()?,
    })
}

fn default_port(tls: bool) -> u16 {
    if tls { 8883 } else { 1883 }
}

fn read_tls(files: &TlsFiles, folder: &Path) -> Result<Tls> {
    let read = |path: &Path| {
        let path = folder.join(path);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let client = match (&files.certificate, &files.key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, Secret(read(key)?))),
        _ => None,
    };
    let ca = files.ca.as_deref().map(read).transpose()?;
    Ok(Tls { ca, client, verify_host_name: true })
}

/// PEM that went through an environment variable may hold a literal `\n`.
fn pem(text: &str) -> String {
    text.replace("\\n", "\n")
}

fn topic_level(id: String, key: &str) -> Result<String> {
    if id.is_empty() || id.contains(['/', '+', '#', ' ']) {
        bail!("{key}: expected a text without /, +, # and spaces");
    }
    Ok(id)
}

fn place_of(error: &serde_json::Error) -> String {
    format!("line {} column {}", error.line(), error.column())
}

/// A serde error may quote a value, which may be a key. Missing and misnamed
/// fields are safe to show.
fn hide_values(error: serde_json::Error) -> anyhow::Error {
    let text = error.to_string();
    if text.starts_with("missing field") {
        anyhow!("{text}")
    } else {
        anyhow!("a field has the wrong type; expected texts, and a number for mqtt_port")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn blob(json: &serde_json::Value) -> Secret {
        Secret(base64::engine::general_purpose::STANDARD.encode(json.to_string()))
    }

    fn v3() -> serde_json::Value {
        json!({"mqtt_host": "mqtt.example", "mqtt_port": "8883", "mqtt_protocol": "MQTTS",
            "mqtt_credentials": {"private_key": "K\\nK", "certificate": "C", "ca_chain": "A"},
            "time_sync_protocol": "ntp", "time_sync_host": "t", "time_sync_port": 123,
            "hardware_id": "S01", "channel_id": "s"})
    }

    #[test]
    fn a_v3_blob_with_certificates_connects_with_mutual_tls() {
        let communication = Communication::from_blob(&blob(&v3())).unwrap();
        assert_eq!((communication.broker.host.as_str(), communication.broker.port), ("mqtt.example", 8883));
        assert_eq!(communication.broker.tls.unwrap().client, Some(("C".into(), Secret("K\nK".into()))));
        assert!(!communication.needs_ucm);
    }

    #[test]
    fn a_v3_blob_with_a_password_is_plain_also_when_the_protocol_stands_inside() {
        let mut json = v3();
        json["mqtt_credentials"] = json!({"username": "u", "password": "p", "protocol": "mqtt"});
        json.as_object_mut().unwrap().remove("mqtt_protocol");
        let communication = Communication::from_blob(&blob(&json)).unwrap();
        assert_eq!(communication.broker.credentials, Credentials::Password("u".into(), Secret("p".into())));
        assert_eq!(communication.broker.tls, None);
    }

    #[test]
    fn a_v1_blob_names_the_hardware_by_its_ucm() {
        let json = json!({"mqtt_host": "h", "mqtt_port": 8883, "mqtt_ca": "A", "mqtt_cert": "C",
            "mqtt_private_key": "K", "ucm_id": "V01", "channel_id": "dev"});
        let communication = Communication::from_blob(&blob(&json)).unwrap();
        assert_eq!((communication.hardware_id.as_str(), communication.needs_ucm), ("V01", true));
    }

    #[test]
    fn broken_blobs_say_what_was_expected_and_never_what_they_hold() {
        let change = |key: &str, value: serde_json::Value| {
            let mut json = v3();
            json[key] = value;
            blob(&json)
        };
        for (blob, expected) in [
            (Secret("*secret*".into()), "expected base64 text as the Enapter CLI prints it"),
            (Secret("c2VjcmV0".into()), "expected JSON inside the base64: line 1 column 1"),
            (blob(&json!({"secret": 1})), "missing field `mqtt_host`"),
            (change("mqtt_port", json!("secret")), "mqtt_port: expected 1 to 65535"),
            (change("mqtt_port", json!([1])), "a field has the wrong type; expected texts, and a number for mqtt_port"),
            (change("mqtt_protocol", json!("AMQP")), "mqtt_protocol: expected \"MQTT\" or \"MQTTS\""),
            (
                change("mqtt_credentials", json!({"password": "secret"})),
                "mqtt_credentials: expected private_key, certificate and ca_chain for protocol MQTTS",
            ),
            (change("hardware_id", json!("a/b")), "hardware_id: expected a text without /, +, # and spaces"),
        ] {
            assert_eq!(Communication::from_blob(&blob).unwrap_err().to_string(), expected);
        }
    }
}
