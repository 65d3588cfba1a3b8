//! 1/KP over HTTP: the same requests as over MQTT, without request id and without pushes.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;

use super::super::answer::Answer;
use super::super::service::{Message, Source};
use super::Site;

pub(super) fn routes() -> Router<Site> {
    Router::new().route("/kp1/{*rest}", post(request))
}

async fn request(State(site): State<Site>, Path(rest): Path<String>, payload: Bytes) -> Response {
    let topic = format!("kp1/{rest}");
    let message = Message { source: Source::Http, topic: &topic, payload: &payload };
    match site.cloud.handle(message).outcome {
        Ok(Answer::Done) => StatusCode::OK.into_response(),
        Ok(Answer::Data(body)) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Ok(Answer::Unchanged) => StatusCode::NOT_MODIFIED.into_response(),
        Err(refusal) => refusal.into_response(),
    }
}
