//! TLS for MQTT: a private CA from PEM texts, an optional client certificate,
//! an optional check of the host name.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::Tls;

/// Whether a connection could be made with this, as far as that can be said
/// without the other side.
pub fn check(tls: &Tls) -> Result<()> {
    client_config(tls).map(drop)
}

/// Builds the client side of TLS. Errors name the part that is wrong and never
/// show what it holds.
pub(super) fn client_config(tls: &Tls) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    match &tls.ca {
        Some(ca) => {
            for certificate in certificates(ca, "the CA chain")? {
                roots.add(certificate).context("the CA chain holds a certificate that cannot be used")?;
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(system.certs);
            if added == 0 {
                bail!("the system trusts no certificates; expected `ca` under `tls`, or the package ca-certificates");
            }
        }
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .context("building the certificate check")?;
    let verifier: Arc<dyn ServerCertVerifier> =
        if tls.verify_host_name { verifier } else { Arc::new(AnyName(verifier)) };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let Some((chain, key)) = &tls.client else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(chain, "the client certificate")?;
    let Ok(key) = PrivateKeyDer::from_pem_slice(key.0.as_bytes()) else {
        bail!("the private key: expected one PEM private key");
    };
    let key = provider.key_provider.load_private_key(key).context("the private key cannot be used")?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        // A certificate that cannot be read here, of X.509 version 1 say, is the broker's to judge.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InvalidCertificate(_)) => {}
        Err(_) => bail!("the client certificate and the private key do not fit"),
    }
    Ok(builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))))
}

fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => bail!("{what}: expected PEM certificates"),
    }
}

/// Verifies the chain and the dates but not the host name: Enapter's brokers
/// present certificates without names.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name is checked last, so a wrong name means that all else is right.
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
