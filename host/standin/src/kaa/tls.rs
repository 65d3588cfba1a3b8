//! TLS for the stand-in's MQTT side, with client certificates if wanted.
//!
//! As on the real platform a client without a certificate gets through CONNECT, because only its first topic tells
//! whose client it is; `mqtt` drops it then. One with a certificate of another CA is refused at once.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What a TLS server needs, as PEM texts.
#[derive(Clone)]
pub struct Tls {
    /// The server's certificate chain.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// The CA of clients; with it, clients need a certificate.
    pub client_ca: Option<String>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("client_ca", &self.client_ca.is_some()).finish_non_exhaustive()
    }
}

/// Accepts TLS connections.
#[derive(Clone)]
pub(super) struct Acceptor {
    tls: TlsAcceptor,
    wants_certificate: bool,
}

impl Acceptor {
    /// Reads the PEM texts; the error says which one is wrong.
    pub(super) fn new(tls: &Tls) -> Result<Acceptor> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.context("choosing TLS versions")?;
        let builder = match &tls.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(ca, "the clients' CA")? {
                    roots.add(certificate).context("the clients' CA")?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = verifier.allow_unauthenticated().build().context("the clients' CA")?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates(&tls.certificate, "the certificate")?;
        let key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes());
        let key = key.map_err(|_| anyhow!("the key: expected one PEM private key"))?;
        let config = builder.with_single_cert(chain, key).context("the certificate and the key do not fit")?;
        Ok(Acceptor { tls: TlsAcceptor::from(Arc::new(config)), wants_certificate: tls.client_ca.is_some() })
    }

    /// The connection, and whether its client may publish.
    pub(super) async fn accept(&self, stream: TcpStream) -> Result<(TlsStream<TcpStream>, bool)> {
        let stream = self.tls.accept(stream).await.context("TLS handshake")?;
        let has_certificate = stream.get_ref().1.peer_certificates().is_some();
        Ok((stream, has_certificate || !self.wants_certificate))
    }
}

fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|_| anyhow!("{what}: expected PEM certificates"))?;
    ensure!(!all.is_empty(), "{what}: expected PEM certificates");
    Ok(all)
}
