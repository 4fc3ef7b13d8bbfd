//! Decides about the other side's certificate: who vouches for it, whether its names are allowed, and
//! whether it was revoked.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
};
use x509_parser::extensions::ExtendedKeyUsage;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};
use x509_parser::time::ASN1Time;

use super::certificate::other_version;
use super::files::{self, Authorities};
use super::revoked::Revocations;
use super::{Allowed, Certificate, Error, shown, words};

/// Whom to accept, beside what the library asks.
#[derive(Debug)]
pub struct Accepted {
    pub authorities: Authorities,
    pub allowed: Allowed,
    /// None: nothing is revoked.
    pub revoked: Option<Revocations>,
}

impl Accepted {
    /// Reads the files; without one of authorities they are those that the machine trusts.
    ///
    /// # Errors
    /// Files that cannot be read or used.
    pub fn read(
        authorities: Option<&Path>,
        revoked: Option<&Path>,
        allowed: &Allowed,
    ) -> Result<Self, Error> {
        Ok(Self {
            authorities: match authorities {
                Some(path) => files::authorities(path)?,
                None => files::system_authorities()?,
            },
            allowed: allowed.clone(),
            revoked: revoked.map(files::revocations).transpose()?,
        })
    }

    /// Asks the library whether authorities vouch for a certificate: those that are valid, since it
    /// takes one that has expired as well. `by_all` asks it of all.
    fn vouch(
        &self,
        now: UnixTime,
        by_all: &dyn Fn() -> Result<(), rustls::Error>,
        by: &dyn Fn(Arc<RootCertStore>) -> Result<(), rustls::Error>,
    ) -> Result<(), rustls::Error> {
        let Some((valid, wrong)) = self.authorities.valid_at(now) else {
            return by_all();
        };
        let unknown = || Err(CertificateError::UnknownIssuer.into());
        let verdict = match valid.is_empty() {
            true => unknown(),
            false => by(Arc::new(valid)),
        };
        let is_unknown = verdict
            == Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer,
            ));
        match is_unknown && by_all().is_ok() {
            true => Err(wrong.into()),
            false => verdict,
        }
    }

    /// Whether to accept a certificate, of whose chain the library has decided; notes what is
    /// refused.
    fn decide(
        &self,
        vouched: Result<(), rustls::Error>,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        let refused = match vouched {
            Err(error) => {
                let version = other_version(leaf);
                let reason = version.map(|version| {
                    format!("x509: certificate of version {version}, and version 3 is needed")
                });
                match reason {
                    Some(reason) => (error, Some(reason)),
                    None => words::unverified(error, leaf),
                }
            }
            // The other side sees "bad certificate", as from etcd.
            Ok(()) if !self.allowed.has(leaf) => (
                CertificateError::NotValidForName.into(),
                Some("client certificate authentication failed".to_owned()),
            ),
            Ok(()) => {
                let shown = std::iter::once(leaf).chain(intermediates);
                let revoked = self.revoked.as_ref().map(|list| list.check(shown));
                let Some(Err(refusal)) = revoked else {
                    return Ok(());
                };
                (CertificateError::Revoked.into(), Some(refusal.to_string()))
            }
        };
        let (error, reason) = refused;
        shown::note(Certificate::of(leaf), reason);
        Err(error)
    }
}

/// A client needs a certificate that authorities vouch for, with an allowed name.
#[derive(Debug)]
pub struct ClientVerifier {
    chains: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    accepted: Accepted,
}

impl ClientVerifier {
    pub fn new(accepted: Accepted, provider: Arc<CryptoProvider>) -> Result<Arc<Self>, Error> {
        let store = accepted.authorities.store.clone();
        let chains = WebPkiClientVerifier::builder_with_provider(store, provider.clone())
            .build()
            .map_err(|error| Error::Library(format!("tls: {error}")))?;
        Ok(Arc::new(Self {
            chains,
            provider,
            accepted,
        }))
    }

    fn is_vouched_for(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let by = |chains: &dyn ClientCertVerifier| {
            let verified = chains.verify_client_cert(leaf, intermediates, now);
            verified.map(|_| ())
        };
        let vouched = self
            .accepted
            .vouch(now, &|| by(self.chains.as_ref()), &|store| {
                let chains =
                    WebPkiClientVerifier::builder_with_provider(store, self.provider.clone());
                by(chains.build().map_err(other)?.as_ref())
            });
        match vouched {
            Ok(()) => Ok(()),
            // A certificate that signs itself is usually marked as an authority, and the library
            // takes no authority for a client. One that was given as an authority is one.
            Err(error) if self.accepted.authorities.certificates.contains(leaf) => {
                match is_valid(leaf, now, |usage| usage.client_auth) {
                    true => Ok(()),
                    false => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }
}

fn other(error: VerifierBuilderError) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

/// Whether a certificate is valid at that time, and for that usage.
fn is_valid(
    leaf: &CertificateDer<'_>,
    now: UnixTime,
    is_used: impl Fn(&ExtendedKeyUsage<'_>) -> bool,
) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else {
        return false;
    };
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let now = ASN1Time::from_timestamp(seconds);
    if parsed.version() != X509Version::V3 {
        return false;
    }
    let usage = match parsed.extended_key_usage() {
        Ok(None) => true,
        Ok(Some(usage)) => usage.value.any || is_used(usage.value),
        Err(_) => false,
    };
    usage && now.is_ok_and(|now| parsed.validity().is_valid_at(now))
}

impl Allowed {
    /// Whether a certificate has an allowed name, or none is needed.
    pub fn has(&self, leaf: &CertificateDer<'_>) -> bool {
        if !self.common_names.is_empty() {
            let names = Certificate::of(leaf);
            return names.is_some_and(|names| self.common_names.contains(&names.common_name));
        }
        if self.host_names.is_empty() {
            return true;
        }
        let Ok(parsed) = ParsedCertificate::try_from(leaf) else {
            return false;
        };
        self.host_names.iter().any(|name| {
            let name = ServerName::try_from(name.as_str());
            name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
        })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let vouched = self.is_vouched_for(end_entity, intermediates, now);
        self.accepted.decide(vouched, end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// A server needs a certificate for the name that it is called by, which authorities vouch for,
/// with an allowed name.
#[derive(Debug)]
pub struct ServerVerifier {
    chains: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
    accepted: Accepted,
}

impl ServerVerifier {
    pub fn new(accepted: Accepted, provider: Arc<CryptoProvider>) -> Result<Arc<Self>, Error> {
        let store = accepted.authorities.store.clone();
        let chains = WebPkiServerVerifier::builder_with_provider(store, provider.clone())
            .build()
            .map_err(|error| Error::Library(format!("tls: {error}")))?;
        Ok(Arc::new(Self {
            chains,
            provider,
            accepted,
        }))
    }
}

impl ServerVerifier {
    fn is_vouched_for(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let by = |chains: &WebPkiServerVerifier| {
            let verified = chains.verify_server_cert(leaf, intermediates, name, ocsp_response, now);
            verified.map(|_| ())
        };
        let vouched = self.accepted.vouch(now, &|| by(&self.chains), &|store| {
            let chains = WebPkiServerVerifier::builder_with_provider(store, self.provider.clone());
            let chains = chains.build().map_err(other)?;
            by(&chains)
        });
        let Err(error) = vouched else {
            return Ok(());
        };
        // As for clients: one that signs itself and is trusted.
        let trusted = self.accepted.authorities.certificates.contains(leaf);
        if !trusted || !is_valid(leaf, now, |usage| usage.server_auth) {
            return Err(error);
        }
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let vouched =
            self.is_vouched_for(end_entity, intermediates, server_name, ocsp_response, now);
        self.accepted.decide(vouched, end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// A server has any certificate, and the key of it: certificates that members make for themselves
/// say nothing more.
#[derive(Debug)]
pub struct AnyServer(pub Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a listener would accept this as a client's certificate.
///
/// # Errors
/// Files that cannot be read or used.
#[cfg(any(test, feature = "fuzzing"))]
pub fn accepts(
    clients: &super::Clients,
    der: &[u8],
    now: std::time::Duration,
) -> Result<bool, Error> {
    let (authorities, revoked) = (&clients.authorities, &clients.revoked);
    let accepted = Accepted::read(authorities.as_deref(), revoked.as_deref(), &clients.allowed)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = ClientVerifier::new(accepted, provider)?;
    let now = UnixTime::since_unix_epoch(now);
    let verified = verifier.verify_client_cert(&CertificateDer::from(der), &[], now);
    Ok(verified.is_ok())
}
