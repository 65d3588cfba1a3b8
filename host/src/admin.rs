//! The admin API: HTTP on a Unix socket that only the gateway's user can open.
//!
//! Reads one status and sends requests to the supervisor, nothing else.
//!
//! | method and path | does |
//! |---|---|
//! | `GET /v1/status` | the state of everything |
//! | `GET /v1/swaps` | the newest receipts, oldest first |
//! | `GET /v1/logs?device=ID&follow=true` | log lines, one JSON object a line |
//! | `POST /v1/devices/ID/swap` `{"file": PATH, "accept_diff": false}` | swaps the driver; without a file the configured one is loaded again |
//! | `POST /v1/devices/ID/rollback` | goes back to the driver before, or with `{"to": "1.0.0"}` to a kept version |
//! | `POST /v1/rollout` `{"driver": NAME, "file": PATH, "steps": ["1", "10%", "100%"], "watch": "5m"}` | swaps all devices of a driver in steps |
//! | `GET /v1/rollout` | how far the last one is, or null |
//! | `GET /v1/devices/ID/tape` | what its driver has done, as a tape file |
//! | `POST /v1/devices/ID/record` `{"ms": 600000, "afresh": false}` | keeps all that its driver does for that time |
//! | `POST /v1/devices/ID/restart` | starts the device afresh |
//! | `POST /v1/devices/ID/commands/NAME` `{argument: value}` | runs a command |
//!
//! Errors have status 4xx and a body `{"error": TEXT}`.

use std::convert::Infallible;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::{Body, Bytes};
use axum::extract::{Path as Segment, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::broadcast::error::RecvError;

use crate::files;
use crate::logs::{LogLine, LogTap};
use crate::message::json_object;
use crate::rollout::{NotBegun, Order, Rollouts};
use crate::state::StateFolder;
use crate::supervisor::{Arguments, Control, ControlError};

/// The socket's name in the state folder.
pub const SOCKET: &str = "admin.sock";

#[derive(Clone)]
struct Admin {
    control: Control,
    rollouts: Rollouts,
    tap: LogTap,
}

/// How often to look whether the socket is still there.
const LOOK: Duration = Duration::from_secs(2);

/// Answers until the program ends, on a socket in the state folder, which both
/// are made again when somebody removes them.
pub async fn run(mut state: StateFolder, control: Control, tap: LogTap) {
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/swaps", get(swaps))
        .route("/v1/logs", get(logs))
        .route("/v1/devices/{id}/swap", post(swap))
        .route("/v1/devices/{id}/rollback", post(roll_back))
        .route("/v1/devices/{id}/tape", get(tape))
        .route("/v1/devices/{id}/record", post(record))
        .route("/v1/devices/{id}/restart", post(restart))
        .route("/v1/devices/{id}/commands/{name}", post(command))
        .route("/v1/rollout", get(rollout).post(roll_out))
        .with_state(Admin { control, rollouts: Rollouts::default(), tap });
    let mut told = false;
    loop {
        let (folder, bound) = match tokio::task::spawn_blocking(move || {
            let bound = state.repair().and_then(|()| bind(state.path()));
            (state, bound)
        })
        .await
        {
            Ok(done) => done,
            Err(error) => return tracing::error!("the admin API ended: {error}"),
        };
        state = folder;
        match bound {
            Ok((listener, place)) => {
                told = false;
                let serving = tokio::spawn(axum::serve(listener, routes.clone()).into_future());
                while is_there(&place).await {
                    tokio::time::sleep(LOOK).await;
                }
                serving.abort();
                tracing::warn!("{} is gone; opening it again", place.path.display());
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::error!("the admin API has no socket, and `sandgate devices` finds no gateway: {error:#}");
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// Where the open socket is. It is removed when nobody serves it any more.
struct Place {
    path: PathBuf,
    inode: u64,
}

/// Opens the socket. The folder lets nobody else in, and its lock says that no
/// other gateway uses what is there.
fn bind(state: &Path) -> Result<(UnixListener, Place)> {
    let path = state.join(SOCKET);
    let opening = || format!("opening admin socket {}", path.display());
    match path.symlink_metadata() {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(&path).with_context(opening)?,
        Ok(_) => drop(files::set_aside(&path).with_context(opening)?),
        Err(_) => {}
    }
    let listener = UnixListener::bind(&path).with_context(opening)?;
    let protected = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600));
    protected.with_context(|| format!("protecting admin socket {}", path.display()))?;
    let inode = path.symlink_metadata().with_context(opening)?.ino();
    Ok((listener, Place { path, inode }))
}

impl Drop for Place {
    fn drop(&mut self) {
        // It may be gone, or another gateway's.
        if self.path.symlink_metadata().is_ok_and(|there| there.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn is_there(place: &Place) -> bool {
    tokio::fs::symlink_metadata(&place.path).await.is_ok_and(|there| there.ino() == place.inode)
}

/// A failed request, with its text.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let status = match &error {
            ControlError::UnknownDevice(_) | ControlError::UnknownVersion(_) => StatusCode::NOT_FOUND,
            ControlError::GatewayStops => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::CONFLICT,
        };
        Failure(status, error.to_string())
    }
}

impl From<NotBegun> for Failure {
    fn from(error: NotBegun) -> Self {
        let status = match &error {
            NotBegun::UnknownDriver(_) => StatusCode::NOT_FOUND,
            NotBegun::UnderWay(_) => StatusCode::CONFLICT,
            NotBegun::GatewayStops => StatusCode::SERVICE_UNAVAILABLE,
        };
        Failure(status, error.to_string())
    }
}

type Answer = Result<Response, Failure>;

async fn status(State(admin): State<Admin>) -> Answer {
    let status = admin.control.status().await.ok_or(ControlError::GatewayStops)?;
    Ok(Json(status).into_response())
}

async fn swaps(State(admin): State<Admin>) -> Response {
    Json(admin.control.receipts()).into_response()
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct SwapBody {
    file: Option<PathBuf>,
    #[serde(default)]
    accept_diff: bool,
}

async fn swap(State(admin): State<Admin>, Segment(id): Segment<String>, body: Bytes) -> Answer {
    let body: SwapBody = parse(&body)?;
    let receipt = admin.control.swap(&id, body.file, "admin API", body.accept_diff).await?;
    Ok(Json(receipt).into_response())
}

async fn rollout(State(admin): State<Admin>) -> Response {
    Json(admin.rollouts.progress()).into_response()
}

async fn roll_out(State(admin): State<Admin>, body: Bytes) -> Answer {
    let order: Order = parse_all(&body)?;
    Ok(Json(admin.rollouts.begin(&admin.control, order, "admin API").await?).into_response())
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RollBackBody {
    to: Option<String>,
}

async fn roll_back(State(admin): State<Admin>, Segment(id): Segment<String>, body: Bytes) -> Answer {
    let body: RollBackBody = parse(&body)?;
    Ok(Json(admin.control.roll_back(&id, body.to, "admin API").await?).into_response())
}

async fn tape(State(admin): State<Admin>, Segment(id): Segment<String>) -> Answer {
    let tape = admin.control.tape(&id).await?;
    // Compressing takes a while.
    let bytes = tokio::task::spawn_blocking(move || tape.to_bytes()).await;
    let bytes = bytes.map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

async fn record(State(admin): State<Admin>, Segment(id): Segment<String>, body: Bytes) -> Answer {
    admin.control.record(&id, parse_all(&body)?).await?;
    Ok(Json(json!({})).into_response())
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
            let body = json!({"state": "error", "error": error.text(), "code": error.code()});
            (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
        }
    })
}

fn parse<T: for<'de> Deserialize<'de> + Default>(body: &[u8]) -> Result<T, Failure> {
    if body.is_empty() {
        return Ok(T::default());
    }
    parse_all(body)
}

fn parse_all<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure(StatusCode::BAD_REQUEST, format!("body: {error}")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_status() {
        let text = || "x".to_owned();
        let not_running = ControlError::NotRunning { device: text(), problem: text() };
        for (error, status) in [
            (ControlError::UnknownDevice(text()), StatusCode::NOT_FOUND),
            (ControlError::UnknownVersion(text()), StatusCode::NOT_FOUND),
            (ControlError::GatewayStops, StatusCode::SERVICE_UNAVAILABLE),
            (ControlError::Starting(text()), StatusCode::CONFLICT),
            (ControlError::NoDriverBefore, StatusCode::CONFLICT),
            (ControlError::Refused(text()), StatusCode::CONFLICT),
            (ControlError::DeviceStopped, StatusCode::CONFLICT),
            (not_running, StatusCode::CONFLICT),
        ] {
            assert_eq!(Failure::from(error.clone()).0, status, "{error}");
        }
        assert_eq!(Failure::from(NotBegun::UnknownDriver(text())).0, StatusCode::NOT_FOUND);
        let Err(failure) = parse::<SwapBody>(b"{\"usb\": 1}") else { panic!("it is refused") };
        assert!(failure.0 == StatusCode::BAD_REQUEST && failure.1.contains("unknown field `usb`"), "{}", failure.1);
    }
}
