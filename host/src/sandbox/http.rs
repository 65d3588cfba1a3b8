//! The import `http`: requests to granted hosts, TLS by the host.
//!
//! No redirects, no proxies, no cookies: what is granted is what is reached.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Method, Url};

use super::contract::sandgate::driver::http::{Header, HttpError, Request, Response};
use super::net::timeout;
use super::state::State;
use crate::network::{Access, FieldRequest, FieldResponse, Target};
use crate::sockets::{Socket, Sockets};
use crate::web;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Devices answer with some kilobytes; a guest has to hold the body as well.
const MAX_BODY: usize = 1 << 20;
/// The host holds a request until it is sent.
const MAX_REQUEST: usize = 1 << 20;

/// The client of one device, made at its first request.
pub(super) struct Client {
    access: Arc<Access>,
    /// Where certificates are not looked at.
    unverified: Arc<Access>,
    /// With the connection that it keeps open between requests.
    client: Option<(reqwest::Client, Socket)>,
    /// The same for where certificates are not looked at.
    trusting: Option<(reqwest::Client, Socket)>,
    sockets: Sockets,
    checked: Checked,
}

impl Client {
    pub(super) fn new(access: Access, unverified: &[Target], sockets: Sockets) -> Self {
        let unverified = Access { requested: access.requested.clone(), granted: unverified.to_vec() };
        let (access, unverified) = (Arc::new(access), Arc::new(unverified));
        Client { access, unverified, client: None, trusting: None, sockets, checked: Checked::default() }
    }

    /// Closes what is open.
    pub(super) fn close(&mut self) {
        (self.client, self.trusting) = (None, None);
    }

    /// The client for addresses of a host.
    fn of(&mut self, host: &str, addresses: &[SocketAddr]) -> Result<reqwest::Client, HttpError> {
        let is_unverified = addresses.iter().all(|it| self.unverified.allows(host, it.ip(), it.port()));
        let known = if is_unverified { &self.trusting } else { &self.client };
        if let Some((client, _)) = known {
            return Ok(client.clone());
        }
        let socket = self.sockets.take().map_err(HttpError::Failed)?;
        // The first one in the process counts; all are the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .dns_resolver(Arc::new(self.checked.clone()))
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(90))
            .user_agent(concat!("sandgate/", env!("CARGO_PKG_VERSION")))
            // Names as well: such certificates have any.
            .tls_danger_accept_invalid_certs(is_unverified)
            .build()
            .map_err(|error| HttpError::Failed(web::describe(&error)))?;
        let made = Some((client.clone(), socket));
        if is_unverified {
            self.trusting = made
        } else {
            self.client = made
        }
        Ok(client)
    }
}

/// The addresses that were checked for the request under way. The client
/// asks nobody else, so a name cannot change its mind between check and use.
#[derive(Clone, Default)]
struct Checked(Arc<Mutex<Vec<SocketAddr>>>);

impl Resolve for Checked {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move { Ok(Box::new(addresses.into_iter()) as Addrs) })
    }
}

impl State {
    pub(super) async fn fetch(&mut self, request: Request) -> Result<Response, HttpError> {
        let limit = match request.timeout {
            None => DEFAULT_TIMEOUT,
            Some(milliseconds) => timeout(milliseconds).map_err(HttpError::InvalidRequest)?,
        };
        let result = self.exchange(request, limit).await;
        if let Err(HttpError::NotGranted(text)) = &result {
            let text = text.clone();
            self.complain(&text, &text);
        }
        result
    }

    async fn exchange(&mut self, request: Request, limit: Duration) -> Result<Response, HttpError> {
        if request.body.len() > MAX_REQUEST {
            let text = format!("body: expected at most {MAX_REQUEST} bytes, found {}", request.body.len());
            return Err(HttpError::InvalidRequest(text));
        }
        let (method, url, host, port) = parse(&request)?;
        if let Some(field) = self.field.clone() {
            self.http.access.check_simulated(&host, port).map_err(|error| HttpError::NotGranted(error.to_string()))?;
            let query = url.query().map_or(String::new(), |query| format!("?{query}"));
            let path = format!("{}{query}", url.path());
            let request = FieldRequest { method: method.to_string(), host: (host, port), path, body: request.body };
            let answer = tokio::time::timeout(limit, field.fetch(request)).await.map_err(|_| HttpError::TimedOut)?;
            let FieldResponse { status, headers, body } = answer.map_err(HttpError::Failed)?;
            let headers = headers.into_iter().map(|(name, value)| Header { name, value }).collect();
            return Ok(Response { status, headers, body });
        }
        // Neither path nor query: they may hold a password.
        let asked = format!("{method} {host}:{port}");
        let (access, lookups) = (Arc::clone(&self.http.access), self.lookups.clone());
        let http = &mut self.http;
        let exchange = async move {
            let addresses = access.resolve(&host, port, &lookups).await.map_err(|error| match error {
                crate::network::AccessError::NotGranted(text) => HttpError::NotGranted(text),
                unresolved => HttpError::Failed(unresolved.to_string()),
            })?;
            let client = http.of(&host, &addresses)?;
            *http.checked.0.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
            let mut builder = client.request(method, url);
            for header in &request.headers {
                let reserved = ["host", "content-length", "transfer-encoding", "connection"];
                if !reserved.iter().any(|name| header.name.eq_ignore_ascii_case(name)) {
                    builder = builder.header(&header.name, &header.value);
                }
            }
            if !request.body.is_empty() {
                builder = builder.body(request.body);
            }
            let request = builder.build().map_err(|error| HttpError::InvalidRequest(web::describe(&error)))?;
            let response = client.execute(request).await.map_err(|error| HttpError::Failed(web::describe(&error)))?;
            read(response).await
        };
        let result = tokio::time::timeout(limit, exchange).await.unwrap_or(Err(HttpError::TimedOut));
        // A refusal costs a driver nothing, so it is told once, by who refused it.
        if !matches!(result, Err(HttpError::NotGranted(_) | HttpError::InvalidRequest(_))) {
            let (device, outcome) = (self.outlet.device.as_str(), result.as_ref().map(|response| response.status));
            tracing::debug!(device, "HTTP: {asked}: {outcome:?}");
        }
        result
    }
}

fn parse(request: &Request) -> Result<(Method, Url, String, u16), HttpError> {
    let wrong = |text: String| HttpError::InvalidRequest(text);
    let method = Method::from_bytes(request.method.to_ascii_uppercase().as_bytes())
        .map_err(|_| wrong(format!("method: expected one such as GET, found {:?}", request.method)))?;
    let url = Url::parse(&request.url).map_err(|error| wrong(format!("url: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong(format!("url: expected http or https, found {}", url.scheme())));
    }
    let host = url.host_str().ok_or_else(|| wrong("url: expected a host".into()))?.to_owned();
    let port = url.port_or_known_default().ok_or_else(|| wrong("url: expected a port".into()))?;
    Ok((method, url, host, port))
}

async fn read(response: reqwest::Response) -> Result<Response, HttpError> {
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| Header {
            name: name.as_str().to_owned(),
            value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
        })
        .collect();
    let mut body = Vec::new();
    let mut parts = response.bytes_stream();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| HttpError::Failed(web::describe(&error)))?;
        if body.len() + part.len() > MAX_BODY {
            return Err(HttpError::TooLarge(u32::try_from(MAX_BODY).unwrap_or(u32::MAX)));
        }
        body.extend_from_slice(&part);
    }
    Ok(Response { status, headers, body })
}
