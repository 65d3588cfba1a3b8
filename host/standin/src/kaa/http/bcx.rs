//! Uploads, as the REST API of BCX has them, and the blobs that were uploaded.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::Deserialize;

use super::super::answer::Refusal;
use super::super::service::Service;
use super::super::uploads::Blob;
use super::{Answer, Site, base};

pub(super) fn routes() -> Router<Site> {
    Router::new()
        .route("/bcx/api/v1/binary-data", post(upload))
        .route("/bcx/api/v1/files/{name}", post(upload_file))
        .route("/applications/{application}/endpoints/{token}/binary-data/{id}", get(download))
}

#[derive(Deserialize)]
struct Which {
    name: Option<String>,
}

async fn upload(State(site): State<Site>, Query(which): Query<Which>, headers: HeaderMap, body: Bytes) -> Answer {
    let (blob, application) = site.cloud.step(|service, now| store(service, now, &headers, which.name, body, false))?;
    let Blob { id, endpoint, .. } = blob;
    let location = format!("{}/applications/{application}/endpoints/{endpoint}/binary-data/{id}", base(&headers));
    Ok((StatusCode::CREATED, [(header::LOCATION, location)]).into_response())
}

async fn upload_file(State(site): State<Site>, Path(name): Path<String>, headers: HeaderMap, body: Bytes) -> Answer {
    site.cloud.step(|service, now| store(service, now, &headers, Some(name), body, true))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn store(
    service: &mut Service,
    now: u64,
    headers: &HeaderMap,
    name: Option<String>,
    body: Bytes,
    replace: bool,
) -> Result<(Blob, String), Refusal> {
    let token = headers.get("x-auth-token").and_then(|token| token.to_str().ok());
    let owner = service.uploads.check(now, token)?;
    if name.as_ref().is_some_and(|name| name.len() > 256) {
        return Err(Refusal::malformed("name: expected at most 256 bytes"));
    }
    let application = service.endpoint(&owner)?.application.clone();
    let blob = service.uploads.store(now, &owner, name, body, replace)?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let text = format!(
        "{} of {} bytes, {}",
        blob.name.as_deref().unwrap_or("a blob"),
        blob.size,
        content_type.unwrap_or("without a content type")
    );
    service.events.note(now, "upload", Some(&owner), text);
    Ok((blob, application))
}

async fn download(State(site): State<Site>, Path((_, token, id)): Path<(String, String, u64)>) -> Answer {
    let bytes = site.cloud.look(|service, _| service.uploads.blob(&token, id).map(|blob| blob.bytes.clone()));
    let bytes = bytes.ok_or_else(|| Refusal::missing(format!("blob {id} of endpoint {token}: not known")))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}
