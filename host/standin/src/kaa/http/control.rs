//! Calls that the real platform does not have.
//!
//! | method and path below `/standin/v1` | does |
//! |---|---|
//! | `GET /endpoints`, `GET /endpoints/T` | what is known of endpoints |
//! | `GET /endpoints/T/samples?after=N&follow=true` | samples: an array, or one a line as they come |
//! | `GET /endpoints/T/configurations`, `GET /endpoints/T/software` | the history of each |
//! | `GET /endpoints/T/blobs` | what it uploaded |
//! | `PUT /tokens/T` `{"state": "active", "appVersion": AV}` | changes a token's state; makes an unknown endpoint |
//! | `GET /faults`, `POST /faults` `{"fault": "status-late=2s"}`, `DELETE /faults?name=NAME` | the knobs of `faults` |
//! | `GET /events?follow=true` | what happened: an array, or one a line as it happens |
//! | `POST /files/NAME`, `GET /files/SHA256/NAME` | files for software offers |
//! | `POST /disconnect` | closes all MQTT connections |

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use futures::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::super::answer::Refusal;
use super::super::endpoint::TokenState;
use super::super::faults;
use super::{Answer, Site, base, json as answer, read};

pub(super) fn routes() -> Router<Site> {
    let api = Router::new()
        .route("/endpoints", get(endpoints))
        .route("/endpoints/{token}", get(endpoint))
        .route("/endpoints/{token}/samples", get(samples))
        .route("/endpoints/{token}/configurations", get(configurations))
        .route("/endpoints/{token}/software", get(software))
        .route("/endpoints/{token}/blobs", get(blobs))
        .route("/tokens/{token}", put(set_token))
        .route("/faults", get(faults).post(set_fault).delete(clear_faults))
        .route("/events", get(events))
        .route("/files/{name}", post(store_file))
        .route("/files/{sha256}/{name}", get(file))
        .route("/disconnect", post(disconnect));
    Router::new().nest("/standin/v1", api)
}

async fn endpoints(State(site): State<Site>) -> Answer {
    let all: Vec<Json> = site.cloud.look(|service, _| {
        let connected = |token: &str| service.routes.find(token).is_some();
        service.endpoints.iter().map(|(token, endpoint)| endpoint.summary(token, connected(token))).collect()
    });
    Ok(answer(StatusCode::OK, &json!(all)))
}

async fn endpoint(State(site): State<Site>, Path(token): Path<String>) -> Answer {
    Ok(answer(StatusCode::OK, &site.cloud.endpoint(&token)?))
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    follow: bool,
}

async fn samples(State(site): State<Site>, Path(token): Path<String>, Query(since): Query<Since>) -> Answer {
    site.cloud.endpoint(&token)?;
    if !since.follow {
        return Ok(answer(StatusCode::OK, &json!(site.cloud.samples(&token, since.after))));
    }
    let (cloud, steps) = (site.cloud.clone(), site.cloud.steps());
    let news = stream::unfold((cloud, steps, since.after), move |(cloud, mut steps, after)| {
        let token = token.clone();
        async move {
            loop {
                steps.borrow_and_update();
                let samples = cloud.samples(&token, after);
                if let Some(last) = samples.last() {
                    let after = last.sequence;
                    return Some((samples, (cloud, steps, after)));
                }
                steps.changed().await.ok()?;
            }
        }
    });
    Ok(follow(&site, news.map(stream::iter).flatten()))
}

/// A line of JSON for each item until the stand-in stops.
fn follow<T: Serialize>(site: &Site, items: impl Stream<Item = T> + Send + 'static) -> Response {
    let site = site.clone();
    let lines = items.map(|item| {
        serde_json::to_vec(&item).map(|mut line| {
            line.push(b'\n');
            line
        })
    });
    let body = Body::from_stream(lines.take_until(Box::pin(async move { site.stop().await })));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

async fn configurations(State(site): State<Site>, Path(token): Path<String>) -> Answer {
    let history = site
        .cloud
        .look(|service, _| Ok::<_, Refusal>(json!(service.endpoint(&token)?.configurations.history.entries())));
    Ok(answer(StatusCode::OK, &history?))
}

async fn software(State(site): State<Site>, Path(token): Path<String>) -> Answer {
    let history =
        site.cloud.look(|service, _| Ok::<_, Refusal>(json!(service.endpoint(&token)?.software.history.entries())));
    Ok(answer(StatusCode::OK, &history?))
}

async fn blobs(State(site): State<Site>, Path(token): Path<String>) -> Answer {
    let blobs = site.cloud.look(|service, _| json!(service.uploads.blobs(&token).collect::<Vec<_>>()));
    Ok(answer(StatusCode::OK, &blobs))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenChange {
    state: TokenState,
    app_version: Option<String>,
}

async fn set_token(State(site): State<Site>, Path(token): Path<String>, body: Bytes) -> Answer {
    let change: TokenChange = read(&body)?;
    site.cloud.set_token(&token, change.state, change.app_version.as_deref())?;
    Ok(answer(StatusCode::OK, &site.cloud.endpoint(&token)?))
}

async fn faults(State(site): State<Site>) -> Answer {
    let set = site.cloud.look(|service, _| json!(service.faults.all()));
    Ok(answer(StatusCode::OK, &json!({"faults": set, "names": faults::names().collect::<Vec<_>>()})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewFault {
    fault: String,
}

async fn set_fault(State(site): State<Site>, body: Bytes) -> Answer {
    site.cloud.set_fault(&read::<NewFault>(&body)?.fault)?;
    faults(State(site)).await
}

#[derive(Deserialize)]
struct Which {
    name: Option<String>,
}

async fn clear_faults(State(site): State<Site>, Query(which): Query<Which>) -> Answer {
    if let Some(name) = &which.name
        && !faults::names().any(|known| known == name)
    {
        return Err(Refusal::malformed(faults::no_fault(name)));
    }
    site.cloud.step(|service, now| service.clear_faults(now, which.name.as_deref()));
    faults(State(site)).await
}

async fn events(State(site): State<Site>, Query(since): Query<Since>) -> Answer {
    if !since.follow {
        return Ok(answer(StatusCode::OK, &json!(site.cloud.events())));
    }
    let listener = site.cloud.listen();
    let news = stream::unfold(listener, |mut listener| async move {
        use tokio::sync::broadcast::error::RecvError;
        loop {
            match listener.recv().await {
                Ok(event) => return Some((event, listener)),
                // A reader that is too slow misses some.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Ok(follow(&site, news))
}

async fn store_file(State(site): State<Site>, Path(name): Path<String>, headers: HeaderMap, body: Bytes) -> Answer {
    if name.is_empty() || name.len() > 256 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b)) {
        return Err(Refusal::malformed("name: expected letters, digits, . _ + and -"));
    }
    let size = body.len();
    let sha256 = site.cloud.step(|service, _| service.uploads.store_file(&name, body))?;
    let link = format!("{}/standin/v1/files/{sha256}/{name}", base(&headers));
    Ok(answer(StatusCode::CREATED, &json!({"link": link, "size": size, "sha256": sha256})))
}

async fn file(State(site): State<Site>, Path((sha256, name)): Path<(String, String)>) -> Answer {
    let bytes = site.cloud.look(|service, _| service.uploads.file(&sha256, &name));
    let bytes = bytes.ok_or_else(|| Refusal::missing("no such file"))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

async fn disconnect(State(site): State<Site>) -> Answer {
    site.cloud.disconnect_all();
    Ok(answer(StatusCode::OK, &json!({})))
}
