//! Tokens of a real etcd, and what must not pass for one.

use super::super::keys::KeyError;
use super::*;
use crate::config::{INVALID_OPTIONS, SIGN_METHODS};

fn file(name: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/service/tokens/testdata");
    std::fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn method(name: &str) -> SignMethod {
    let method = SIGN_METHODS.iter().find(|method| method.name == name);
    *method.expect("a method")
}

/// With the files of these names; `-` for none.
fn keys(method_name: &str, private: &str, public: &str) -> Result<Keys, KeyError> {
    let read = |name: &str| match name {
        "-" => Vec::new(),
        name => file(name),
    };
    Keys::of(method(method_name), &read(private), &read(public))
}

fn jwt(method_name: &str, private: &str, public: &str) -> Jwt {
    let keys = keys(method_name, private, public).unwrap_or_else(|error| panic!("{error}"));
    Jwt::new(method(method_name), TTL, keys)
}

const TTL: Duration = Duration::from_secs(300);
const NOW: Duration = Duration::from_millis(1_800_000_000_500);

fn alice() -> User {
    User {
        name: "alice \"q\" é".to_owned(),
        auth_revision: 7,
    }
}

/// Method, private key, token.
fn vectors() -> Vec<(String, String, String)> {
    let text = String::from_utf8(file("etcd.txt")).expect("text");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let vectors: Vec<_> = lines
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [method, key, token] = words[..] else {
                panic!("{line}");
            };
            (method.to_owned(), key.to_owned(), token.to_owned())
        })
        .collect();
    assert_eq!(vectors.len(), SIGN_METHODS.len());
    vectors
}

fn public_of(private: &str) -> String {
    let name = private.split('.').next().unwrap_or_default();
    format!("{name}.pub")
}

#[test]
fn tokens_of_etcd_are_valid_for_their_method_alone() {
    let vectors = vectors();
    for (method, key, token) in &vectors {
        let mut verifiers = vec![jwt(method, key, "-")];
        if !method.starts_with("HS") {
            let public = public_of(key);
            verifiers.push(jwt(method, key, &public));
            verifiers.push(jwt(method, "-", &public));
        }
        for verifier in verifiers {
            let user = verifier
                .user(token, NOW)
                .unwrap_or_else(|| panic!("{method}"));
            assert_eq!((&*user.name, user.auth_revision), ("root", 4));
            for (other, _, token) in &vectors {
                assert_eq!(verifier.user(token, NOW).is_some(), other == method);
            }
        }
    }
}

#[test]
fn what_is_signed_is_verified_until_it_expires() {
    for (method, key, _) in vectors() {
        let jwt = jwt(&method, &key, "-");
        let token = jwt.sign(&alice(), NOW).expect("signed");
        assert_eq!(jwt.user(&token, NOW).as_deref(), Some(&alice()), "{method}");
        // Whole seconds count, as for any token.
        let end = Duration::from_secs(NOW.as_secs()) + TTL;
        assert!(
            jwt.user(&token, end - Duration::from_nanos(1_000))
                .is_some()
        );
        assert_eq!(jwt.user(&token, end), None, "{method}");
        // Whatever was found before is no promise for another text.
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(bytes).expect("text");
            assert_eq!(jwt.user(&other, NOW), None, "{method}: {other}");
        }
    }
}

#[test]
fn a_public_key_verifies_only() {
    let jwt = jwt("ES256", "-", "p256.pub");
    assert_eq!(jwt.sign(&alice(), NOW), Err(NotSigned));
    let both = super::tests::jwt("ES256", "p256.pem", "p256.pub");
    let token = both.sign(&alice(), NOW).expect("signed");
    assert_eq!(jwt.user(&token, NOW).as_deref(), Some(&alice()));
}

/// A token of these parts, signed with the shared secret.
fn signed(header: &str, claims: &str) -> String {
    let keys = keys("HS256", "hmac.key", "-").expect("a key");
    let mut token = BASE64.encode(header);
    token.push('.');
    BASE64.encode_string(claims, &mut token);
    let signature = keys.sign(token.as_bytes()).expect("signed");
    token.push('.');
    BASE64.encode_string(signature, &mut token);
    token
}

#[test]
fn claims_are_read_as_etcd_reads_them() {
    let jwt = jwt("HS256", "hmac.key", "-");
    let header = r#"{"alg":"HS256"}"#;
    let root = |revision| {
        Some(User {
            name: "root".to_owned(),
            auth_revision: revision,
        })
    };
    for (claims, expected) in [
        (r#"{"username":"root","revision":7}"#, root(7)),
        (
            r#"{"username":"root","revision":7.9,"more":{"a":[]}}"#,
            root(7),
        ),
        (r#"{"username":"root","revision":-1}"#, root(0)),
        (r#"{"username":"root","revision":"7"}"#, None),
        (r#"{"username":"root"}"#, None),
        (r#"{"revision":7}"#, None),
        (r#"{"username":7,"revision":7}"#, None),
        (r#"{"username":"root","revision":7,"exp":0}"#, root(7)),
        (r#"{"username":"root","revision":7,"exp":1799999999}"#, None),
        (
            r#"{"username":"root","revision":7,"exp":1800000000.9}"#,
            None,
        ),
        (
            r#"{"username":"root","revision":7,"exp":1800000001}"#,
            root(7),
        ),
        (
            r#"{"username":"root","revision":7,"exp":"1800000001"}"#,
            None,
        ),
        (r#"{"username":"root","revision":7,"exp":null}"#, None),
        (
            r#"{"username":"root","revision":7,"nbf":1800000000.9}"#,
            root(7),
        ),
        (r#"{"username":"root","revision":7,"nbf":1800000001}"#, None),
        (r#"{"username":"root","revision":7,"nbf":"x"}"#, None),
        (
            r#"{"username":"root","revision":7,"iat":1900000000}"#,
            root(7),
        ),
        ("[]", None),
        ("", None),
    ] {
        let token = signed(header, claims);
        assert_eq!(
            jwt.user(&token, NOW).as_deref(),
            expected.as_ref(),
            "{claims}"
        );
    }
}

#[test]
fn the_method_is_never_the_token_s_choice() {
    let claims = r#"{"username":"root","revision":7}"#;
    let jwt = jwt("HS256", "hmac.key", "-");
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"HS384"}"#,
        r#"{"alg":"hs256"}"#,
        r#"{"alg":["HS256"]}"#,
        "{}",
        "HS256",
    ] {
        assert_eq!(jwt.user(&signed(header, claims), NOW), None, "{header}");
    }
    // The classic: a public key as the secret of a token that says it is signed with one.
    let public = file("rsa.pub");
    let secret = Keys::of(method("HS256"), &public, b"").expect("a key");
    let forged = Jwt::new(method("HS256"), TTL, secret).sign(&alice(), NOW);
    let rs256 = super::tests::jwt("RS256", "-", "rsa.pub");
    assert_eq!(rs256.user(&forged.expect("signed"), NOW), None);
    for token in ["", ".", "..", "...", "a.b", "a.b.c.d", "Bearer x", "é.é.é"] {
        assert_eq!(jwt.user(token, NOW), None, "{token}");
    }
    let unsigned = signed(r#"{"alg":"HS256"}"#, claims);
    let (unsigned, _) = unsigned.rsplit_once('.').expect("a signature");
    assert_eq!(jwt.user(&format!("{unsigned}."), NOW), None);
    assert_eq!(jwt.user(unsigned, NOW), None);
}

#[test]
fn keys_are_refused_in_etcd_s_words() {
    let curve = "auth: a key for ES384 has to be on the curve P-384";
    for (method, private, public, expected) in [
        ("HS256", "-", "hmac.key", "auth: missing key data"),
        ("RS256", "-", "-", "auth: missing key data"),
        (
            "RS256",
            "other.pem",
            "rsa.pub",
            "auth: public and private keys don't match",
        ),
        ("PS256", "rsa.pkcs1.pem", "rsa.pkcs1.pub", ""),
        (
            "RS256",
            "hmac.key",
            "-",
            "invalid key: Key must be a PEM encoded PKCS1 or PKCS8 key",
        ),
        ("RS256", "ed.pem", "-", "key is not a valid RSA private key"),
        ("RS256", "-", "ed.pub", "key is not a valid RSA public key"),
        ("ES256", "p256.pem", "-", ""),
        ("ES384", "p384.sec1.pem", "-", ""),
        (
            "ES384",
            "p384.sec1.pem",
            "p384.pub",
            "auth: public and private keys don't match",
        ),
        ("ES384", "p256.pem", "-", curve),
        ("ES384", "-", "p521.pub", curve),
        (
            "ES256",
            "rsa.pem",
            "-",
            "key is not a valid ECDSA private key",
        ),
        (
            "ES256",
            "-",
            "rsa.pub",
            "key is not a valid ECDSA public key",
        ),
        (
            "EdDSA",
            "p256.pem",
            "-",
            "key is not a valid Ed25519 private key",
        ),
        (
            "EdDSA",
            "-",
            "p256.pub",
            "key is not a valid Ed25519 public key",
        ),
        ("EdDSA", "ed.pem", "ed.pub", ""),
        // The certificate of a key stands for it, but not where etcd does not read one.
        ("RS256", "rsa.pem", "rsa.crt", ""),
        ("PS384", "-", "rsa.crt", ""),
        ("ES256", "p256.pem", "p256.crt", ""),
        (
            "RS256",
            "other.pem",
            "rsa.crt",
            "auth: public and private keys don't match",
        ),
        (
            "RS256",
            "-",
            "p256.crt",
            "key is not a valid RSA public key",
        ),
        ("ES384", "-", "p256.crt", curve),
        (
            "EdDSA",
            "-",
            "ed.crt",
            "key is not a valid Ed25519 public key",
        ),
    ] {
        let found = keys(method, private, public).err();
        let found = found.map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(found, expected, "{method} {private} {public}");
    }
    let options = JwtOptions {
        method: method("RS256"),
        public_key: None,
        private_key: Some("nowhere".into()),
        ttl: TTL,
    };
    let error = Keys::load(&options, |path| Err(format!("open {}: no", path.display())));
    let error = error.err().expect("refused");
    assert_eq!(error.to_string(), INVALID_OPTIONS);
    let note = error.note().expect("a line");
    assert_eq!(note.fields, [("error", "open nowhere: no".into())]);
}

#[test]
fn what_is_kept_of_verified_tokens_is_bounded() {
    let jwt = jwt("HS256", "hmac.key", "-");
    let header = r#"{"alg":"HS256"}"#;
    let token = |number: usize| {
        signed(
            header,
            &format!(r#"{{"username":"u{number}","revision":1}}"#),
        )
    };
    for number in 0..3 * MAX_KEPT {
        assert!(jwt.user(&token(number), NOW).is_some());
        // The first is in use all the time.
        assert!(jwt.user(&token(0), NOW).is_some());
        let kept = jwt.verified.lock();
        assert!(kept.newer.len() <= MAX_KEPT && kept.older.len() <= MAX_KEPT);
    }
    let digest = digest::digest(&digest::SHA256, token(0).as_bytes());
    let digest: Digest = digest.as_ref().try_into().expect("its size");
    let kept = jwt.verified.lock();
    assert!(kept.newer.contains_key(&digest) || kept.older.contains_key(&digest));
}
