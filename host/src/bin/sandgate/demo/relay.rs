//! An HTTP relay that talks like Tasmota, with a lamp of 60 W behind it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Starts the relay and returns its port.
pub async fn start() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("opening the simulated relay")?;
    let port = listener.local_addr().context("opening the simulated relay")?.port();
    let routes = Router::new().route("/cm", get(command)).with_state(Arc::new(AtomicBool::new(true)));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!("the simulated relay ended: {error}");
        }
    });
    Ok(port)
}

#[derive(Deserialize)]
struct Words {
    #[serde(default)]
    cmnd: String,
}

async fn command(State(on): State<Arc<AtomicBool>>, Query(words): Query<Words>) -> Json<Value> {
    let mut parts = words.cmnd.split_whitespace();
    let name = parts.next().unwrap_or_default().to_ascii_lowercase();
    let data = parts.next().unwrap_or_default().to_ascii_lowercase();
    // "Status11" and "Status 11" mean the same.
    let (name, data) = match name.strip_prefix("status") {
        Some(number) if !number.is_empty() => ("status".to_owned(), number.to_owned()),
        _ => (name, data),
    };
    let state = |on: bool| if on { "ON" } else { "OFF" };
    Json(match (name.as_str(), data.as_str()) {
        ("", _) => json!({"WARNING": "Enter command cmnd="}),
        ("power" | "power1", data) => {
            match data {
                "on" | "1" => on.store(true, Ordering::Relaxed),
                "off" | "0" => on.store(false, Ordering::Relaxed),
                "toggle" | "2" => drop(on.fetch_xor(true, Ordering::Relaxed)),
                _ => {}
            }
            json!({"POWER": state(on.load(Ordering::Relaxed))})
        }
        ("status", number) => status(number, on.load(Ordering::Relaxed), state(on.load(Ordering::Relaxed))),
        (name, _) if name.starts_with("power") => json!({"Command": "Error"}),
        _ => json!({"Command": "Unknown"}),
    })
}

fn status(number: &str, on: bool, state: &str) -> Value {
    let power = if on { 60.0 } else { 0.0 };
    let firmware = json!({"Version": "14.2.0(tasmota)", "Hardware": "ESP8266EX"});
    let network = json!({"Hostname": "tasmota-4711", "IPAddress": "127.0.0.1", "Mac": "AA:BB:CC:00:47:11"});
    let sensors = json!({"Time": "2026-01-01T12:00:00", "ENERGY": {"Total": 6.404, "Today": 0.32, "Power": power,
        "Voltage": 230, "Current": power / 230.0, "Factor": 1.0}});
    let general = json!({"DeviceName": "Demo relay", "FriendlyName": ["Lamp"], "Power": if on { "1" } else { "0" }});
    let now = json!({"Uptime": "0T01:00:00", "UptimeSec": 3600, "POWER": state, "Wifi": {"RSSI": 78}});
    match number {
        "" => json!({ "Status": general }),
        "0" => {
            json!({"Status": general, "StatusFWR": firmware, "StatusNET": network, "StatusSNS": sensors, "StatusSTS": now})
        }
        "2" => json!({ "StatusFWR": firmware }),
        "5" => json!({ "StatusNET": network }),
        "8" | "10" => json!({ "StatusSNS": sensors }),
        "11" => json!({ "StatusSTS": now }),
        _ => json!({"Command": "Error"}),
    }
}
