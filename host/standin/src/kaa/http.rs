//! The HTTP side: 1/KP's own HTTP binding, the platform's calls that a tester needs, and the stand-in's own.
//!
//! An endpoint's id is its token. Errors are `{"statusCode": …, "reasonPhrase": …}` everywhere.
//!
//! | method and path | does |
//! |---|---|
//! | `POST /kp1/AV/EXT/TOKEN/RESOURCE` | a device's request; 304 for "not changed" |
//! | `POST /cex/api/v1/endpoints/T/commands/TYPE?awaitTimeout=S&commandTtl=MS` | a command: 200 with its result, or 202 and `Location` |
//! | `GET`, `DELETE /cex/api/v1/endpoints/T/commands/TYPE/ID` | a command as it stands; takes it back |
//! | `GET /cex/api/v1/endpoints/T/commands[/TYPE]` | all commands |
//! | `PUT`, `GET`, `DELETE /ecr/api/v1/endpoints/T/app-versions/AV?configName=NAME` | an endpoint's configuration; `If-Match` |
//! | `PUT`, `GET`, `DELETE /ecr/api/v1/app-versions/AV?configName=NAME` | the default one of an app version |
//! | `PUT`, `DELETE /otao/api/v1/applications/APP/software/VERSION` | a software offer, `software::Offer` |
//! | `GET /otao/api/v1/applications/APP/software` | all offers |
//! | `POST /bcx/api/v1/binary-data?name=NAME`, `POST /bcx/api/v1/files/NAME` | an upload with `x-auth-token` |
//! | `GET /applications/APP/endpoints/T/binary-data/ID` | an uploaded blob |
//! | `GET`, `PUT`, `PATCH /epmx/api/v1/endpoints/T/metadata` | metadata: all, replace, merge |
//! | `GET /epts/api/v1/applications/APP/time-series/data?timeSeriesName=auto~F&endpointId=T` | points of a series |
//! | `/standin/v1/…` | see `http/control.rs` |

mod bcx;
mod cex;
mod control;
mod data;
mod ecr;
mod kp1;
mod otao;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::answer::Refusal;
use super::cloud::Cloud;
use super::uploads::MAX_BLOB;

/// What every handler gets.
#[derive(Clone)]
struct Site {
    cloud: Cloud,
    /// Its sender goes away when the stand-in stops.
    stopped: watch::Receiver<()>,
}

type Answer = Result<Response, Refusal>;

/// Answers until the sender of `stopped` is gone.
pub(super) async fn serve(listener: TcpListener, cloud: Cloud, stopped: watch::Receiver<()>) {
    let mut end = stopped.clone();
    let routes = Router::new()
        .merge(kp1::routes())
        .merge(cex::routes())
        .merge(ecr::routes())
        .merge(otao::routes())
        .merge(bcx::routes())
        .merge(data::routes())
        .merge(control::routes())
        .fallback(|| async { Refusal::missing("no such call") })
        // One more byte than the largest blob, so that the store itself says what is too large.
        .layer(DefaultBodyLimit::max(MAX_BLOB + 1))
        .with_state(Site { cloud, stopped });
    let signal = async move { while end.changed().await.is_ok() {} };
    if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(signal).await {
        tracing::warn!("stand-in of Kaa: HTTP ends: {error}");
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, "application/json")], self.body()).into_response()
    }
}

impl Site {
    /// Waits until the stand-in stops.
    async fn stop(&self) {
        let mut stopped = self.stopped.clone();
        while stopped.changed().await.is_ok() {}
    }
}

/// Reads a body; `deny_unknown_fields` of the type makes the error clear.
fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::malformed(format!("body: {error}")))
}

fn json(status: StatusCode, value: &Json) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// How the caller names this server, for links.
fn base(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("127.0.0.1");
    format!("http://{host}")
}
