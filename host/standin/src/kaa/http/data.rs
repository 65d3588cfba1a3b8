//! Metadata and time series, in the manner of the REST APIs of EPR and EPTS.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::super::answer::Refusal;
use super::super::series;
use super::{Answer, Site, json as answer, read};

pub(super) fn routes() -> Router<Site> {
    let metadata = get(read_metadata).put(replace).patch(merge);
    Router::new()
        .route("/epmx/api/v1/endpoints/{token}/metadata", metadata)
        .route("/epts/api/v1/applications/{application}/time-series/data", get(points))
}

async fn read_metadata(State(site): State<Site>, Path(token): Path<String>) -> Answer {
    Ok(answer(StatusCode::OK, &site.cloud.metadata(&token)?))
}

async fn replace(State(site): State<Site>, Path(token): Path<String>, body: Bytes) -> Answer {
    change(&site, &token, &body, false)
}

async fn merge(State(site): State<Site>, Path(token): Path<String>, body: Bytes) -> Answer {
    change(&site, &token, &body, true)
}

fn change(site: &Site, token: &str, body: &Bytes, merge: bool) -> Answer {
    let values: Map<String, Json> = read(body)?;
    site.cloud.step(|service, now| {
        let metadata = &mut service.endpoint(token)?.metadata;
        if merge {
            metadata.merge(values)?
        } else {
            metadata.replace(values)?
        }
        service.events.note(now, "metadata", Some(token), "changed by the platform".to_owned());
        Ok::<_, Refusal>(())
    })?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    time_series_name: String,
    endpoint_id: String,
    #[serde(default)]
    from_date: u64,
    #[serde(default = "forever")]
    to_date: u64,
}

fn forever() -> u64 {
    u64::MAX
}

async fn points(State(site): State<Site>, Path(_): Path<String>, Query(span): Query<Span>) -> Answer {
    // So that an unknown endpoint is an error and not an empty series.
    site.cloud.endpoint(&span.endpoint_id)?;
    let samples = site.cloud.samples(&span.endpoint_id, 0);
    let points = series::points(&samples, &span.time_series_name, span.from_date, span.to_date);
    Ok(answer(StatusCode::OK, &json!({span.endpoint_id: {span.time_series_name: points}})))
}
