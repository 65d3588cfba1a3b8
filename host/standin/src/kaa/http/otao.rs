//! Software offers, in the manner of OTAO's REST API.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, put};
use serde_json::json;

use super::super::answer::Refusal;
use super::super::software::Offer;
use super::{Answer, Site, json as answer, read};

pub(super) fn routes() -> Router<Site> {
    Router::new()
        .route("/otao/api/v1/applications/{application}/software", get(all))
        .route("/otao/api/v1/applications/{application}/software/{version}", put(offer).delete(withdraw))
}

async fn all(State(site): State<Site>, Path(application): Path<String>) -> Answer {
    let offers = site.cloud.look(|service, _| json!(service.catalogue.all(&application).collect::<Vec<_>>()));
    Ok(answer(StatusCode::OK, &offers))
}

async fn offer(State(site): State<Site>, Path((application, version)): Path<(String, String)>, body: Bytes) -> Answer {
    let offer = Offer { application, version, ..read(&body)? };
    let shown = json!(offer);
    site.cloud.offer_software(offer)?;
    Ok(answer(StatusCode::OK, &shown))
}

async fn withdraw(State(site): State<Site>, Path((application, version)): Path<(String, String)>) -> Answer {
    match site.cloud.step(|service, _| service.catalogue.delete(&application, &version)) {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(Refusal::missing(format!("software {version} of application {application}: not offered"))),
    }
}
