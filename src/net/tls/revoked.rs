//! Lists of revoked certificates, in DER or in PEM.
//!
//! As in etcd a list counts for all certificates with one of its serial numbers: who signed it,
//! which authority it is of and when it was to be replaced are not checked, so the file is
//! trusted as it is.

use std::collections::BTreeSet;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

/// How DER begins, and no text in PEM.
const SEQUENCE: u8 = 0x30;

/// Why a certificate is not accepted; etcd's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The serial number is in hexadecimal digits.
    #[error("transport: certificate serial {0} revoked")]
    Revoked(String),
    #[error("transport: a certificate has no serial number that can be read")]
    Unreadable,
}

/// Serial numbers of revoked certificates, without zeros before them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Revocations(BTreeSet<Box<[u8]>>);

impl Revocations {
    /// Those of one list in DER, or of all lists of a text in PEM, of which it must have one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(file: &[u8]) -> Result<Self, String> {
        let mut revocations = Self::default();
        if file.first() == Some(&SEQUENCE) {
            revocations.add(file)?;
            return Ok(revocations);
        }
        let mut lists = 0;
        for list in CertificateRevocationListDer::pem_slice_iter(file) {
            revocations.add(&list.map_err(|error| error.to_string())?)?;
            lists += 1;
        }
        match lists {
            0 => Err("it holds no list of revoked certificates, neither in DER nor in PEM".into()),
            _ => Ok(revocations),
        }
    }

    fn add(&mut self, der: &[u8]) -> Result<(), String> {
        let parsed = CertificateRevocationList::from_der(der);
        let (rest, list) = parsed.map_err(|error| {
            format!("it is no list of revoked certificates that can be read: {error}")
        })?;
        if !rest.is_empty() {
            return Err("bytes follow the list of revoked certificates".to_owned());
        }
        let serials = list.iter_revoked_certificates();
        self.0
            .extend(serials.map(|entry| digits(entry.raw_serial()).into()));
        Ok(())
    }

    /// Checks all that were shown.
    pub fn check<'a>(
        &self,
        shown: impl IntoIterator<Item = &'a CertificateDer<'a>>,
    ) -> Result<(), Refusal> {
        for der in shown {
            let parsed = X509Certificate::from_der(der);
            let (_, certificate) = parsed.map_err(|_| Refusal::Unreadable)?;
            let serial = digits(certificate.raw_serial());
            if self.0.contains(serial) {
                let digits = serial.iter().map(|byte| format!("{byte:02x}"));
                return Err(Refusal::Revoked(digits.collect()));
            }
        }
        Ok(())
    }
}

/// A number without zeros before it, of which DER has one for its sign.
fn digits(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}
