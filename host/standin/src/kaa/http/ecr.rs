//! Configurations, as the REST API of ECR has them: of one endpoint, and the default of an app version.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use serde::Deserialize;

use super::super::answer::Refusal;
use super::super::configurations::Document;
use super::{Answer, Site, json, read};

pub(super) fn routes() -> Router<Site> {
    let of_endpoint = put(put_own).get(get_own).delete(delete_own);
    let of_version = put(put_default).get(get_default).delete(delete_default);
    Router::new()
        .route("/ecr/api/v1/endpoints/{token}/app-versions/{version}", of_endpoint)
        .route("/ecr/api/v1/app-versions/{version}", of_version)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Which {
    #[serde(default)]
    config_name: String,
}

fn if_match(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::IF_MATCH)?.to_str().ok()
}

fn show(document: &Document) -> Response {
    let etag = format!("\"{}\"", document.config_id);
    ([(header::ETAG, etag)], json(StatusCode::OK, &document.rest())).into_response()
}

fn found(document: Option<Document>) -> Answer {
    document.map(|document| show(&document)).ok_or_else(|| Refusal::missing("no configuration is assigned"))
}

fn deleted(is_deleted: bool) -> Answer {
    match is_deleted {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(Refusal::missing("no configuration is assigned")),
    }
}

async fn put_own(
    State(site): State<Site>,
    Path((token, version)): Path<(String, String)>,
    Query(which): Query<Which>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let (config, expected) = (read(&body)?, if_match(&headers));
    let name = which.config_name.as_str();
    let put = site.cloud.step(|service, now| service.put_config(now, &token, (&version, name), config, expected));
    put.map(|document| show(&document))
}

async fn get_own(
    State(site): State<Site>,
    Path((token, version)): Path<(String, String)>,
    Query(which): Query<Which>,
) -> Answer {
    let document = site.cloud.look(|service, _| {
        let endpoint = service.endpoint(&token)?;
        Ok::<_, Refusal>(endpoint.configurations.overrides.find(&version, &which.config_name).cloned())
    });
    found(document?)
}

async fn delete_own(
    State(site): State<Site>,
    Path((token, version)): Path<(String, String)>,
    Query(which): Query<Which>,
) -> Answer {
    let gone = site.cloud.step(|service, _| {
        Ok::<_, Refusal>(service.endpoint(&token)?.configurations.overrides.delete(&version, &which.config_name))
    });
    deleted(gone?)
}

async fn put_default(
    State(site): State<Site>,
    Path(version): Path<String>,
    Query(which): Query<Which>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let (config, expected) = (read(&body)?, if_match(&headers));
    let name = which.config_name.as_str();
    let put = site.cloud.step(|service, now| service.put_default_config(now, (&version, name), config, expected));
    put.map(|document| show(&document))
}

async fn get_default(State(site): State<Site>, Path(version): Path<String>, Query(which): Query<Which>) -> Answer {
    found(site.cloud.look(|service, _| service.defaults.find(&version, &which.config_name).cloned()))
}

async fn delete_default(State(site): State<Site>, Path(version): Path<String>, Query(which): Query<Which>) -> Answer {
    deleted(site.cloud.step(|service, _| service.defaults.delete(&version, &which.config_name)))
}
