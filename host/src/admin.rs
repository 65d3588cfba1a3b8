//! The admin API: HTTP on a Unix socket that only the gateway's user can open.
//!
//! Reads one status and sends requests to the supervisor, nothing else.
//!
//! | method and path | does |
//! |---|---|
//! | `GET /v1/status` | the state of everything |
//! | `GET /v1/swaps` | the newest receipts, oldest first |
//! | `GET /v1/logs?device=ID&follow=true` | log lines, one JSON object a line |
//! | `POST /v1/devices/ID/swap` `{"file": PATH}` | swaps the driver; without a file the configured one is loaded again |
//! | `POST /v1/devices/ID/rollback` | goes back to the driver before |
//! | `POST /v1/devices/ID/restart` | starts the device afresh |
//! | `POST /v1/devices/ID/commands/NAME` `{argument: value}` | runs a command |
//!
//! Errors have status 4xx and a body `{"error": TEXT}`.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use axum::body::{Body, Bytes};
use axum::extract::{Path as Segment, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;

use crate::logs::{LogLine, LogTap};
use crate::message::{error_code, error_text, json_object};
use crate::supervisor::{Arguments, Control};

/// The socket's name in the state folder.
pub const SOCKET: &str = "admin.sock";

#[derive(Clone)]
struct Admin {
    control: Control,
    tap: LogTap,
}

/// Opens the socket; fails when another gateway uses the state folder.
pub async fn bind(state: &Path) -> Result<UnixListener> {
    let path = state.join(SOCKET);
    if UnixStream::connect(&path).await.is_ok() {
        bail!("another gateway runs in {}", state.display());
    }
    // What is left of a killed one.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("opening admin socket {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protecting admin socket {}", path.display()))?;
    Ok(listener)
}

/// Answers until the program ends.
pub async fn serve(listener: UnixListener, control: Control, tap: LogTap) -> Result<()> {
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/swaps", get(swaps))
        .route("/v1/logs", get(logs))
        .route("/v1/devices/{id}/swap", post(swap))
        .route("/v1/devices/{id}/rollback", post(roll_back))
        .route("/v1/devices/{id}/restart", post(restart))
        .route("/v1/devices/{id}/commands/{name}", post(command))
        .with_state(Admin { control, tap });
    axum::serve(listener, routes).await.context("serving the admin API")
}

/// A failed request.
struct Failure(String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::CONFLICT, Json(json!({ "error": self.0 }))).into_response()
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Failure(text)
    }
}

type Answer = Result<Response, Failure>;

async fn status(State(admin): State<Admin>) -> Answer {
    let status = admin.control.status().await.ok_or_else(|| Failure("the gateway is stopping".into()))?;
    Ok(Json(status).into_response())
}

async fn swaps(State(admin): State<Admin>) -> Response {
    Json(admin.control.receipts()).into_response()
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct SwapBody {
    file: Option<PathBuf>,
}

async fn swap(State(admin): State<Admin>, Segment(id): Segment<String>, body: Bytes) -> Answer {
    let body: SwapBody = parse(&body)?;
    let receipt = admin.control.swap(&id, body.file, "admin API").await?;
    Ok(Json(receipt).into_response())
}

async fn roll_back(State(admin): State<Admin>, Segment(id): Segment<String>) -> Answer {
    Ok(Json(admin.control.roll_back(&id, "admin API").await?).into_response())
}

async fn restart(State(admin): State<Admin>, Segment(id): Segment<String>) -> Answer {
    admin.control.restart(&id).await?;
    Ok(Json(json!({})).into_response())
}

async fn command(State(admin): State<Admin>, Segment((id, name)): Segment<(String, String)>, body: Bytes) -> Answer {
    let arguments: Arguments = parse(&body)?;
    let result = admin.control.command(&id, &name, arguments).await?;
    Ok(match result {
        Ok(attributes) => Json(json!({"state": "completed", "result": json_object(&attributes)})).into_response(),
        Err(error) => {
            let body = json!({"state": "error", "error": error_text(&error), "code": error_code(&error)});
            (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
        }
    })
}

fn parse<T: for<'de> Deserialize<'de> + Default>(body: &[u8]) -> Result<T, Failure> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| Failure(format!("body: {error}")))
}

#[derive(Deserialize)]
struct LogsQuery {
    device: Option<String>,
    #[serde(default)]
    follow: bool,
}

async fn logs(State(admin): State<Admin>, Query(query): Query<LogsQuery>) -> Response {
    let (newest, listener) = admin.tap.listen();
    let newest = stream::iter(newest);
    let lines = if query.follow { newest.chain(follow(listener)).boxed() } else { newest.boxed() };
    let lines = lines
        .filter(move |line| {
            let wanted = query.device.is_none() || line.device == query.device;
            async move { wanted }
        })
        .map(|line| {
            // Texts and numbers always serialize.
            let mut text = serde_json::to_string(&line).unwrap_or_default();
            text.push('\n');
            Ok::<_, Infallible>(text)
        });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn follow(listener: tokio::sync::broadcast::Receiver<LogLine>) -> impl Stream<Item = LogLine> {
    stream::unfold(listener, |mut listener| async move {
        loop {
            match listener.recv().await {
                Ok(line) => return Some((line, listener)),
                // A slow reader misses lines; the newest still come.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    })
}
