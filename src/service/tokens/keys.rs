//! The keys that JSON web tokens are signed and verified with, read from files as etcd reads them.
//!
//! A file's first PEM block counts, by its content and not by its label, but for `EC PARAMETERS`,
//! which openssl writes before a key. Of a private key its public part verifies; a public key alone
//! verifies only, and may be that of a certificate, nothing else of which is checked. A key that
//! cannot serve the method, as one on another curve, is refused at the start; etcd starts with it and refuses all log-ins.

use std::path::Path;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, ParsedPublicKey,
    RsaEncoding, RsaKeyPair, VerificationAlgorithm,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::config::{INVALID_OPTIONS, JwtOptions, Note, SignMethod, Signature};

/// Why no tokens can be made or verified with what the flags name; etcd's text where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The reason is in a log line.
    #[error("{INVALID_OPTIONS}")]
    Unreadable(String),
    #[error("auth: missing key data")]
    Missing,
    #[error("auth: public and private keys don't match")]
    Mismatch,
    #[error("invalid key: Key must be a PEM encoded PKCS1 or PKCS8 key")]
    NotPem,
    #[error("key is not a valid RSA private key")]
    NotRsaPrivate,
    #[error("key is not a valid RSA public key")]
    NotRsaPublic,
    #[error("key is not a valid ECDSA private key")]
    NotEcdsaPrivate,
    #[error("key is not a valid ECDSA public key")]
    NotEcdsaPublic,
    #[error("key is not a valid Ed25519 private key")]
    NotEd25519Private,
    #[error("key is not a valid Ed25519 public key")]
    NotEd25519Public,
    #[error("auth: a key for {method} has to be on the curve {curve}")]
    OtherCurve {
        method: &'static str,
        curve: &'static str,
    },
}

impl KeyError {
    /// The log line before the refusal.
    pub fn note(&self) -> Option<Note> {
        let Self::Unreadable(why) = self else {
            return None;
        };
        Some(Note::warn("problem loading JWT options").with("error", why.as_str()))
    }
}

/// What tokens are made and verified with.
pub struct Keys {
    signing: Option<Signing>,
    verifying: Verifying,
}

enum Signing {
    Hmac(Box<hmac::Key>),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

enum Verifying {
    Hmac(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

/// A signature could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSigned;

impl Keys {
    /// Reads the keys that the options name.
    pub fn load(
        options: &JwtOptions,
        read_file: impl Fn(&Path) -> Result<Vec<u8>, String>,
    ) -> Result<Self, KeyError> {
        let read = |path: Option<&Path>| match path {
            Some(path) => read_file(path).map_err(KeyError::Unreadable),
            None => Ok(Vec::new()),
        };
        let public = read(options.public_key.as_deref())?;
        let private = Zeroizing::new(read(options.private_key.as_deref())?);
        Self::of(options.method, &private, &public)
    }

    /// Of the contents of two files; empty where there is none.
    pub fn of(method: SignMethod, private: &[u8], public: &[u8]) -> Result<Self, KeyError> {
        if method.signature == Signature::Hmac {
            if private.is_empty() {
                return Err(KeyError::Missing);
            }
            let key = Box::new(hmac::Key::new(hmac_algorithm(method), private));
            return Ok(Self {
                signing: Some(Signing::Hmac(key.clone())),
                verifying: Verifying::Hmac(key),
            });
        }
        let signing = match private {
            [] => None,
            pem => Some(private_key(method, &Zeroizing::new(der(pem)?))?),
        };
        let public = match public {
            [] => None,
            pem => Some(public_key(method, &der(pem)?)?),
        };
        let keys = match (signing, public) {
            (None, None) => return Err(KeyError::Missing),
            (None, Some(public)) => Self {
                signing: None,
                verifying: Verifying::Public(public),
            },
            (Some(signing), public) => {
                let own = signing.public(method)?;
                let keys = Self {
                    signing: Some(signing),
                    verifying: Verifying::Public(public.unwrap_or(own)),
                };
                keys.check_match()?;
                keys
            }
        };
        Ok(keys)
    }

    /// A public key fits a private one if it verifies what that signs.
    fn check_match(&self) -> Result<(), KeyError> {
        let message = b"whether both keys are of one pair";
        let signature = self.sign(message).map_err(|_| KeyError::Mismatch)?;
        match self.verifies(message, &signature) {
            true => Ok(()),
            false => Err(KeyError::Mismatch),
        }
    }

    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, NotSigned> {
        let failed = |_| NotSigned;
        let random = SystemRandom::new();
        Ok(match self.signing.as_ref().ok_or(NotSigned)? {
            Signing::Hmac(key) => hmac::sign(key, message).as_ref().to_vec(),
            Signing::Rsa(key, encoding) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(*encoding, &random, message, &mut signature)
                    .map_err(failed)?;
                signature
            }
            Signing::Ecdsa(key) => {
                let signature = key.sign(&random, message).map_err(failed)?;
                signature.as_ref().to_vec()
            }
            Signing::Ed25519(key) => key.try_sign(message).map_err(failed)?.as_ref().to_vec(),
        })
    }

    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.verifying {
            Verifying::Hmac(key) => hmac::verify(key, message, signature).is_ok(),
            Verifying::Public(key) => key.verify_sig(message, signature).is_ok(),
        }
    }
}

impl Signing {
    fn public(&self, method: SignMethod) -> Result<ParsedPublicKey, KeyError> {
        match self {
            Signing::Hmac(_) => Err(KeyError::Missing),
            Signing::Rsa(key, _) => public_key(method, key.public_key().as_ref()),
            Signing::Ecdsa(key) => public_key(method, key.public_key().as_ref()),
            Signing::Ed25519(key) => public_key(method, key.public_key().as_ref()),
        }
    }
}

fn hmac_algorithm(method: SignMethod) -> hmac::Algorithm {
    match method.bits {
        256 => hmac::HMAC_SHA256,
        384 => hmac::HMAC_SHA384,
        _ => hmac::HMAC_SHA512,
    }
}

fn rsa_encoding(method: SignMethod) -> &'static dyn RsaEncoding {
    match (method.signature, method.bits) {
        (Signature::RsaPss, 256) => &signature::RSA_PSS_SHA256,
        (Signature::RsaPss, 384) => &signature::RSA_PSS_SHA384,
        (Signature::RsaPss, _) => &signature::RSA_PSS_SHA512,
        (_, 256) => &signature::RSA_PKCS1_SHA256,
        (_, 384) => &signature::RSA_PKCS1_SHA384,
        _ => &signature::RSA_PKCS1_SHA512,
    }
}

/// Method, and the name of its curve as openssl has it.
fn ecdsa_signing(method: SignMethod) -> (&'static EcdsaSigningAlgorithm, &'static str) {
    match method.bits {
        256 => (&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
        384 => (&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
        _ => (&signature::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
    }
}

fn verification(method: SignMethod) -> &'static dyn VerificationAlgorithm {
    match (method.signature, method.bits) {
        (Signature::RsaPkcs1, 256) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (Signature::RsaPkcs1, 384) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (Signature::RsaPkcs1, _) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (Signature::RsaPss, 256) => &signature::RSA_PSS_2048_8192_SHA256,
        (Signature::RsaPss, 384) => &signature::RSA_PSS_2048_8192_SHA384,
        (Signature::RsaPss, _) => &signature::RSA_PSS_2048_8192_SHA512,
        (Signature::Ecdsa, 256) => &signature::ECDSA_P256_SHA256_FIXED,
        (Signature::Ecdsa, 384) => &signature::ECDSA_P384_SHA384_FIXED,
        (Signature::Ecdsa, _) => &signature::ECDSA_P521_SHA512_FIXED,
        (Signature::Ed25519 | Signature::Hmac, _) => &signature::ED25519,
    }
}

/// The content of the first block of a PEM file.
fn der(file: &[u8]) -> Result<Vec<u8>, KeyError> {
    let blocks = pem::parse_many(file).map_err(|_| KeyError::NotPem)?;
    let first = blocks
        .into_iter()
        .find(|block| block.tag() != "EC PARAMETERS");
    first.map(pem::Pem::into_contents).ok_or(KeyError::NotPem)
}

fn private_key(method: SignMethod, der: &[u8]) -> Result<Signing, KeyError> {
    match method.signature {
        Signature::RsaPkcs1 | Signature::RsaPss => {
            let key = RsaKeyPair::from_der(der).or_else(|_| RsaKeyPair::from_pkcs8(der));
            let key = key.map_err(|_| KeyError::NotRsaPrivate)?;
            Ok(Signing::Rsa(key, rsa_encoding(method)))
        }
        Signature::Ecdsa => {
            let (wanted, curve) = ecdsa_signing(method);
            if let Ok(key) = EcdsaKeyPair::from_private_key_der(wanted, der) {
                return Ok(Signing::Ecdsa(key));
            }
            let on_any = CURVES.iter().any(|bits| {
                let (algorithm, _) = ecdsa_signing(SignMethod {
                    bits: *bits,
                    ..method
                });
                EcdsaKeyPair::from_private_key_der(algorithm, der).is_ok()
            });
            Err(match on_any {
                true => other_curve(method, curve),
                false => KeyError::NotEcdsaPrivate,
            })
        }
        Signature::Ed25519 | Signature::Hmac => Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map(Signing::Ed25519)
            .map_err(|_| KeyError::NotEd25519Private),
    }
}

/// The key that a certificate is for.
fn certified_key(der: &[u8]) -> Option<&[u8]> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.tbs_certificate.subject_pki.raw)
}

fn public_key(method: SignMethod, der: &[u8]) -> Result<ParsedPublicKey, KeyError> {
    let der = match method.signature {
        // Its reader knows keys alone, in etcd as well.
        Signature::Ed25519 => der,
        _ => certified_key(der).unwrap_or(der),
    };
    let parse = |method| ParsedPublicKey::new(verification(method), der);
    parse(method).map_err(|_| match method.signature {
        Signature::RsaPkcs1 | Signature::RsaPss => KeyError::NotRsaPublic,
        Signature::Ecdsa => {
            let on_any = CURVES.iter().any(|bits| {
                parse(SignMethod {
                    bits: *bits,
                    ..method
                })
                .is_ok()
            });
            match on_any {
                true => other_curve(method, ecdsa_signing(method).1),
                false => KeyError::NotEcdsaPublic,
            }
        }
        Signature::Ed25519 | Signature::Hmac => KeyError::NotEd25519Public,
    })
}

/// By the bits of the hash that each is used with.
const CURVES: [u16; 3] = [256, 384, 512];

fn other_curve(method: SignMethod, curve: &'static str) -> KeyError {
    KeyError::OtherCurve {
        method: method.name,
        curve,
    }
}
