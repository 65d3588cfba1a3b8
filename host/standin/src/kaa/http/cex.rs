//! Commands, as the REST API of CEX has them.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::super::answer::Refusal;
use super::super::commands::{Command, DEFAULT_TTL};
use super::{Answer, Site, json as answer};

/// The longest time to wait for a result.
const MAX_AWAIT: f64 = 60.0;

pub(super) fn routes() -> Router<Site> {
    Router::new()
        .route("/cex/api/v1/endpoints/{token}/commands", get(all))
        .route("/cex/api/v1/endpoints/{token}/commands/{kind}", post(invoke).get(of_kind))
        .route("/cex/api/v1/endpoints/{token}/commands/{kind}/{id}", get(one).delete(delete))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Invocation {
    #[serde(default)]
    await_timeout: f64,
    command_ttl: Option<u64>,
}

async fn invoke(
    State(site): State<Site>,
    Path((token, kind)): Path<(String, String)>,
    Query(query): Query<Invocation>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    if !(0.0..=MAX_AWAIT).contains(&query.await_timeout) {
        return Err(Refusal::malformed("awaitTimeout: expected 0 to 60 seconds"));
    }
    let payload = read_payload(&headers, &body)?;
    let ttl = query.command_ttl.unwrap_or(DEFAULT_TTL);
    let command = site.cloud.send_command(&token, &kind, payload, ttl)?;
    let patience = Duration::from_secs_f64(query.await_timeout);
    let executed = tokio::select! {
        executed = site.cloud.await_result(&token, &command, patience) => executed,
        () = site.stop() => None,
    };
    if let Some(executed) = executed {
        return Ok(answer(StatusCode::OK, &result(&executed)));
    }
    let location = format!("/cex/api/v1/endpoints/{token}/commands/{kind}/{}", command.id);
    let accepted = answer(StatusCode::ACCEPTED, &json!({"id": command.id}));
    Ok(([(header::LOCATION, location)], accepted).into_response())
}

/// JSON unless the header says that it is a text.
fn read_payload(headers: &HeaderMap, body: &Bytes) -> Result<Option<Json>, Refusal> {
    if body.is_empty() {
        return Ok(None);
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("text/plain") {
        return Ok(Some(Json::from(String::from_utf8_lossy(body).into_owned())));
    }
    super::read(body).map(Some)
}

fn result(command: &Command) -> Json {
    let mut value = json!(command.result);
    if let Json::Object(value) = &mut value {
        value.insert("id".to_owned(), json!(command.id));
    }
    value
}

async fn all(State(site): State<Site>, Path(token): Path<String>) -> Answer {
    let all = site.cloud.look(|service, now| {
        let endpoint = service.endpoint(&token)?;
        Ok::<_, Refusal>(json!(endpoint.commands.all(now).collect::<Vec<_>>()))
    })?;
    Ok(answer(StatusCode::OK, &all))
}

async fn of_kind(State(site): State<Site>, Path((token, kind)): Path<(String, String)>) -> Answer {
    let found = site.cloud.look(|service, now| {
        let endpoint = service.endpoint(&token)?;
        let found: Vec<_> = endpoint.commands.all(now).filter(|command| command.command_type == kind).collect();
        Ok::<_, Refusal>(json!(found))
    })?;
    Ok(answer(StatusCode::OK, &found))
}

async fn one(State(site): State<Site>, Path((token, kind, id)): Path<(String, String, i32)>) -> Answer {
    let command = site.cloud.command(&token, &kind, id)?;
    Ok(answer(StatusCode::OK, &json!(command)))
}

async fn delete(State(site): State<Site>, Path((token, kind, id)): Path<(String, String, i32)>) -> Answer {
    let deleted =
        site.cloud.step(|service, _| Ok::<_, Refusal>(service.endpoint(&token)?.commands.delete(&kind, id)))?;
    match deleted {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(Refusal::missing(format!("command {kind} {id}: not known"))),
    }
}
