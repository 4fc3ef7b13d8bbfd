//! Files of certificates, keys and lists of revoked certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::{CertificateError, RootCertStore};

use super::Error;
use super::certificate::{expiries, other_version, validity};
use super::revoked::Revocations;

/// Where systems keep the certificates of the authorities that they trust; Go's list for Linux.
const SYSTEM_AUTHORITIES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// No such file is near it: what is longer is something else.
const MAX_FILE_BYTES: u64 = 16 << 20;

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |reason: String| Error::Read {
        path: path.to_owned(),
        reason,
    };
    let in_go = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    let length = fs::metadata(path).map_err(|error| failed(in_go(error)))?;
    if length.len() > MAX_FILE_BYTES {
        return Err(failed(format!("larger than {MAX_FILE_BYTES} bytes")));
    }
    fs::read(path).map_err(|error| failed(in_go(error)))
}

fn content(path: &Path, reason: impl ToString) -> Error {
    Error::Content {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// The certificates of a file, at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| content(path, error))?;
    if found.is_empty() {
        return Err(content(path, "it holds no certificate in PEM"));
    }
    Ok(found)
}

/// A certificate to show, and those after it that lead to its authority.
pub fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain = certificates(path)?;
    match chain.first().and_then(other_version) {
        None => Ok(chain),
        Some(version) => Err(content(
            path,
            format!(
                "its certificate is of X.509 version {version}, and version 3 is needed, with a subjectAltName"
            ),
        )),
    }
}

/// The first private key of a file, in the forms of PKCS #1, PKCS #8 or SEC 1.
pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let text = zeroize::Zeroizing::new(read(path)?);
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => content(
            path,
            "it holds no private key in PEM that is not encrypted (PKCS #1, PKCS #8, SEC 1)",
        ),
        error => content(path, error),
    })
}

/// The revoked certificates of a file.
pub fn revocations(path: &Path) -> Result<Revocations, Error> {
    Revocations::of(&read(path)?).map_err(|error| content(path, error))
}

/// Authorities: a file's, or the machine's.
#[derive(Debug)]
pub struct Authorities {
    pub store: Arc<RootCertStore>,
    /// The same, whole.
    pub certificates: Vec<CertificateDer<'static>>,
    /// From when to when each is valid, which the library does not ask of authorities.
    validities: Vec<(i64, i64)>,
    /// When the last of a file expires, beside which it may hold those that were replaced; in
    /// seconds since 1970. None for the machine's.
    pub expiry: Option<i64>,
}

impl Authorities {
    /// Those that are valid at a time, and why one of the others is not; none if all are.
    pub fn valid_at(&self, now: UnixTime) -> Option<(RootCertStore, CertificateError)> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let is_valid = |(begin, end): &(i64, i64)| *begin <= seconds && seconds <= *end;
        let time = |seconds: i64| {
            let seconds = u64::try_from(seconds).unwrap_or_default();
            UnixTime::since_unix_epoch(Duration::from_secs(seconds))
        };
        let (begin, end) = *self.validities.iter().find(|one| !is_valid(one))?;
        let wrong = match seconds < begin {
            true => CertificateError::NotValidYetContext {
                time: now,
                not_before: time(begin),
            },
            false => CertificateError::ExpiredContext {
                time: now,
                not_after: time(end),
            },
        };
        let mut store = RootCertStore::empty();
        let all = self.certificates.iter().zip(&self.validities);
        let valid = all.filter(|(_, validity)| is_valid(validity));
        store.add_parsable_certificates(valid.map(|(der, _)| der.clone()));
        Some((store, wrong))
    }
}

/// Reads the authorities of a file, each of which must be one.
pub fn authorities(path: &Path) -> Result<Authorities, Error> {
    let certificates = certificates(path)?;
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        let added = store.add(certificate.clone());
        added.map_err(|error| content(path, error))?;
    }
    Ok(Authorities {
        store: Arc::new(store),
        expiry: expiries(&certificates).max(),
        validities: certificates.iter().map(validity).collect(),
        certificates,
    })
}

/// The files that say whom to believe, where one is given and where none is.
pub fn of_authorities(given: Option<&PathBuf>) -> Vec<PathBuf> {
    match given {
        Some(path) => vec![path.clone()],
        None => SYSTEM_AUTHORITIES.map(PathBuf::from).to_vec(),
    }
}

/// Those that the machine trusts; what it has beside them is left out.
pub fn system_authorities() -> Result<Authorities, Error> {
    first_authorities(&SYSTEM_AUTHORITIES.map(Path::new))
}

/// Those of the first of these files that is there.
fn first_authorities(paths: &[&Path]) -> Result<Authorities, Error> {
    let path = paths.iter().find(|path| path.exists());
    let path = path.ok_or_else(|| {
        Error::Library(format!(
            "tls: no file of authorities is given, and this machine has none in any of {paths:?}"
        ))
    })?;
    let certificates = certificates(path)?;
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates.iter().cloned());
    Ok(Authorities {
        store: Arc::new(store),
        expiry: None,
        validities: certificates.iter().map(validity).collect(),
        certificates,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_s_authorities_are_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let [none, some, other] = ["none.pem", "some.pem", "other.pem"].map(|n| dir.path().join(n));
        let (authority, old) = (
            include_str!("testdata/authority.pem"),
            include_str!("testdata/v1.ca.pem"),
        );
        // In PEM, and no certificate.
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        fs::write(&some, [authority, broken, old].concat()).expect("writes");
        fs::write(&other, authority).expect("writes");
        let found = first_authorities(&[&none, &some, &other]).expect("a file");
        assert_eq!(found.store.len(), 2);
        assert_eq!(found.certificates.len(), 3);
        assert_eq!(found.expiry, None);
        // A file that is named has to be sound as a whole.
        assert!(matches!(authorities(&some), Err(Error::Content { .. })));
        assert!(authorities(&other).expect("sound").expiry.is_some());

        let missing = first_authorities(&[&none]).expect_err("none is there");
        let missing = missing.to_string();
        assert!(missing.contains("none.pem") && missing.contains("no file of authorities"));
        fs::write(&some, "").expect("writes");
        let empty = first_authorities(&[&some, &other]).expect_err("is empty");
        assert!(matches!(empty, Error::Content { .. }));
        // Those of this machine, if it has any.
        let has_some = SYSTEM_AUTHORITIES
            .iter()
            .any(|path| Path::new(path).exists());
        let found = system_authorities();
        assert_eq!(found.is_ok(), has_some);
        assert!(found.is_err() || !found.expect("found").store.is_empty());
    }
}
