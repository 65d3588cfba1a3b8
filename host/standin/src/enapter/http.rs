//! The stand-in's HTTP API.
//!
//! Paths under `/v3` are those of the platform's own API, with what a tester
//! needs of them; they say how they differ. Paths under `/standin/v1` have no
//! counterpart there. DEVICE is a channel id such as `s--meter`, or
//! `HARDWARE:CHANNEL` where that is ambiguous.
//!
//! | method and path | does |
//! |---|---|
//! | `GET /standin/v1/devices` | all that is known of every device |
//! | `GET /standin/v1/devices/DEVICE/samples?limit=N&follow=true` | telemetry, one JSON object a line, oldest first |
//! | `GET /standin/v1/devices/DEVICE/logs?limit=N&follow=true` | the device's log, likewise |
//! | `GET /standin/v1/log?limit=N&follow=true` | everything that happened and was dropped, likewise |
//! | `GET /standin/v1/executions/ID` | the progress of a command as it comes, then the execution: one JSON object a line |
//!
//! The paths under `/v3` are listed in `commands` and `telemetry`.
//! Errors have status 4xx and the platform's body
//! `{"errors": [{"code": CODE, "message": TEXT, "details": {}}]}`.

mod commands;
mod devices;
mod follow;
mod telemetry;
mod timeseries;

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;

use super::Shared;
use super::platform::Refused;
use crate::broker::Broker;

/// Larger requests are refused.
const MAX_BODY: usize = 256 << 10;

#[derive(Clone)]
struct App {
    shared: Arc<Shared>,
    broker: Broker,
}

/// Answers until its task ends.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, broker: Broker) {
    let devices = "/v3/devices/{device}";
    let own = "/standin/v1";
    let routes = Router::new()
        .route(&format!("{devices}/execute_command"), post(commands::execute))
        .route(&format!("{devices}/command_executions"), get(commands::list).post(commands::create))
        .route(&format!("{devices}/command_executions/{{id}}"), get(commands::show))
        .route("/v3/telemetry/latest", get(telemetry::latest))
        .route("/v3/telemetry/query_timeseries", post(telemetry::query))
        .route(&format!("{own}/devices"), get(devices::list))
        .route(&format!("{own}/devices/{{device}}/samples"), get(devices::samples))
        .route(&format!("{own}/devices/{{device}}/logs"), get(devices::logs))
        .route(&format!("{own}/log"), get(devices::events))
        .route(&format!("{own}/executions/{{id}}"), get(commands::follow))
        .fallback(|| async { Failure::not_found("no such path; see the documentation of the stand-in") })
        .method_not_allowed_fallback(|| async {
            Failure {
                status: StatusCode::METHOD_NOT_ALLOWED,
                code: "method_not_allowed",
                message: "expected another method".into(),
            }
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(App { shared, broker });
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!("the HTTP side of the stand-in ended: {error}");
    }
}

/// A failed request.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
}

type Answer = Result<Response, Failure>;

impl Failure {
    fn not_found(message: impl Into<String>) -> Failure {
        Failure { status: StatusCode::NOT_FOUND, code: "not_found", message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Failure {
        Failure { status: StatusCode::BAD_REQUEST, code: "invalid_request", message: message.into() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({"errors": [{"code": self.code, "message": self.message, "details": {}}]});
        (self.status, Json(body)).into_response()
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        let (status, code) = match &refused {
            Refused::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Refused::Gone(_) => (StatusCode::GONE, "gone"),
            Refused::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too_many_requests"),
        };
        Failure { status, code, message: refused.to_string() }
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Failure {
        Failure {
            status: rejection.status(),
            code: "invalid_request",
            message: format!("body: {}", rejection.body_text()),
        }
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Failure {
        Failure { status: rejection.status(), code: "invalid_request", message: rejection.body_text() }
    }
}

/// The body of a request, as axum hands it over. Asking for its content type
/// keeps web pages of others out.
type Body<T> = Result<Json<T>, JsonRejection>;
/// The query string of a request, as axum hands it over.
type Asked<T> = Result<Query<T>, QueryRejection>;
