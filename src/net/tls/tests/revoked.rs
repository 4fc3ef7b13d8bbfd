//! Revoked certificates.

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};

use super::super::revoked::{Refusal, Revocations};
use super::*;

/// A list of serial numbers that an authority signs.
fn list(authority: &Authority, serials: &[&[u8]]) -> rcgen::CertificateRevocationList {
    let params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(2020, 2, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial),
                revocation_time: rcgen::date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let issuer = Issuer::from_params(&authority.params, &authority.pair.key);
    params.signed_by(&issuer).expect("signs")
}

fn with_serial(authority: &Authority, name: &str, serial: &[u8]) -> Pair {
    let key = KeyPair::generate().expect("a key");
    authority.issue_with(key, Some(name), &["server.test"], |params| {
        params.serial_number = Some(SerialNumber::from_slice(serial));
    })
}

#[test]
fn numbers_are_compared_whatever_their_form() {
    let authority = Authority::new("ca");
    let other = Authority::new("other");
    let (first, second) = (
        list(&authority, &[&[0x0a, 0xbc]]),
        list(&other, &[&[0xff, 1]]),
    );
    let both = first.pem().expect("PEM") + &second.pem().expect("PEM");
    let text = "Certificate Revocation List (CRL):\n".to_owned() + &both;
    let revoked = "transport: certificate serial";
    // The file, the number of the certificate that is shown, and the reason of a refusal.
    let cases: [(&[u8], &[u8], Option<String>); 6] = [
        (
            first.der(),
            &[0x0a, 0xbc],
            Some(format!("{revoked} 0abc revoked")),
        ),
        (first.der(), &[0xbc], None),
        // A zero before it keeps it from being negative.
        (
            second.der(),
            &[0xff, 1],
            Some(format!("{revoked} ff01 revoked")),
        ),
        (second.der(), &[0x0a, 0xbc], None),
        (
            text.as_bytes(),
            &[0x0a, 0xbc],
            Some(format!("{revoked} 0abc revoked")),
        ),
        (
            text.as_bytes(),
            &[0xff, 1],
            Some(format!("{revoked} ff01 revoked")),
        ),
    ];
    for (case, (file, serial, expected)) in cases.into_iter().enumerate() {
        let revocations = Revocations::of(file).expect("a list");
        let sound = with_serial(&authority, "bob", &[7]);
        let shown = with_serial(&authority, "alice", serial);
        assert_eq!(revocations.check([&sound.der]), Ok(()), "case {case}");
        // Those behind the first count as well.
        let found = revocations.check([&sound.der, &shown.der]);
        let found = found.err().map(|refusal| refusal.to_string());
        assert_eq!(found, expected, "case {case}");
    }
    let unreadable = CertificateDer::from(vec![0x30, 1]);
    let empty = Revocations::of(list(&authority, &[]).der()).expect("a list");
    assert_eq!(empty.check([&unreadable]), Err(Refusal::Unreadable));
}

#[test]
fn what_is_no_list_is_refused() {
    let authority = Authority::new("ca");
    let list = list(&authority, &[&[1]]);
    let longer = [list.der().as_ref(), &[0]].concat();
    let cut = &list.der()[..list.der().len() - 1];
    let pem = list.pem().expect("PEM");
    let cases: [(&[u8], &str); 6] = [
        (b"", "it holds no list of revoked certificates"),
        (
            authority.pair.pem.as_bytes(),
            "it holds no list of revoked certificates",
        ),
        (&authority.pair.der, "it is no list of revoked certificates"),
        (cut, "it is no list of revoked certificates"),
        (&longer, "bytes follow the list"),
        (&pem.as_bytes()[..pem.len() / 2], ""),
    ];
    for (case, (file, expected)) in cases.into_iter().enumerate() {
        let found = Revocations::of(file).expect_err("no list");
        assert!(found.starts_with(expected), "case {case}: {found}");
    }
}

#[tokio::test]
async fn a_list_counts_from_the_next_connection() {
    let authority = Authority::new("ca");
    let pair = authority.issue(None, &["server.test"]);
    let (alice, bob) = (
        with_serial(&authority, "alice", &[0x11]),
        with_serial(&authority, "bob", &[0x12]),
    );
    let files = Files::new();
    let crl = files.path("crl");
    let write = |bytes: &[u8]| fs::write(&crl, bytes).expect("writes");
    let mut settings = files.settings(&pair, Some(&[&authority.pair]));
    settings.clients.as_mut().expect("demanded").revoked = Some(crl.clone());
    let missing = server(&settings).err().expect("no file").to_string();
    let expected = format!("open {}: no such file or directory", crl.display());
    assert_eq!(missing, expected);
    write(b"x");
    let broken = server(&settings).err().expect("no list").to_string();
    let expected = format!("{}: it holds no list of", crl.display());
    assert!(broken.starts_with(&expected), "{broken}");
    write(list(&authority, &[]).der());
    let server = server(&settings).expect("starts");
    let connects = async |shows: &Pair| {
        let offer = Offer::trusting(&authority.pair).showing(shows);
        let found = handshake(&server, &offer, Versions::Both).await;
        found.map(|_| ()).map_err(|refused| {
            let name = refused.certificate.map(|one| one.common_name);
            (name.unwrap_or_default(), refused.reason)
        })
    };
    let revoked = |name: &str, serial: &str| {
        let reason = format!("transport: certificate serial {serial} revoked");
        Err((name.to_owned(), reason))
    };
    assert_eq!(connects(&alice).await, Ok(()));
    write(list(&authority, &[&[0x11]]).der());
    assert_eq!(connects(&alice).await, revoked("alice", "11"));
    assert_eq!(connects(&bob).await, Ok(()));
    // In the other form.
    let both = list(&authority, &[&[0x11], &[0x12]]).pem().expect("PEM");
    write(both.as_bytes());
    assert_eq!(connects(&bob).await, revoked("bob", "12"));
    // A broken one, and one that is away: the last that could be read stays.
    write(&both.as_bytes()[..both.len() / 2]);
    assert_eq!(connects(&alice).await, revoked("alice", "11"));
    fs::remove_file(&crl).expect("removes");
    assert_eq!(connects(&bob).await, revoked("bob", "12"));
    write(list(&authority, &[]).der());
    assert_eq!(connects(&alice).await, Ok(()));
}

#[tokio::test]
async fn who_calls_members_sees_new_lists_and_authorities() {
    let (authority, next) = (Authority::new("ca"), Authority::new("next"));
    let pair = with_serial(&authority, "m1", &[0x21]);
    let files = Files::new();
    let server = server(&files.settings(&pair, None)).expect("starts");
    let ca = files.write("ca1.pem", &authority.pair.pem);
    let crl = files.path("crl");
    let write = |serial: u8| {
        fs::write(&crl, list(&authority, &[&[serial]]).der()).expect("writes");
    };
    write(0x20);
    let client = ClientSettings {
        pair: None,
        verifies: true,
        authorities: Some(ca.clone()),
        revoked: Some(crl.clone()),
        allowed: Allowed::default(),
        protocol: any(),
    };
    let client = TlsClient::new("test", client).expect("starts");
    let calls = async || {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let here = IpAddr::from([127, 0, 0, 1]);
        let both = async {
            tokio::join!(
                server.accept(ours, Some(here), Versions::Both),
                client.connect("server.test", theirs)
            )
        };
        let (_, connected) = tokio::time::timeout(LIMIT, both).await.expect("in time");
        connected.map(drop).map_err(|error| error.to_string())
    };
    let is_revoked = |found: Result<(), String>| {
        let text = found.expect_err("is revoked");
        assert!(text.contains("21 revoked"), "{text}");
    };
    assert_eq!(calls().await, Ok(()));
    write(0x21);
    is_revoked(calls().await);
    // A list that is broken, or away, leaves the one before it.
    fs::write(&crl, "x").expect("writes");
    is_revoked(calls().await);
    fs::remove_file(&crl).expect("removes");
    is_revoked(calls().await);
    write(0x22);
    assert_eq!(calls().await, Ok(()));
    // Whom to believe changes as well: both, the new authority alone, the old one.
    let both = authority.pair.pem.clone() + &next.pair.pem;
    for (trusted, expected) in [
        (&both, true),
        (&next.pair.pem, false),
        (&authority.pair.pem, true),
    ] {
        files.write("ca1.pem", trusted);
        let found = calls().await;
        assert_eq!(found.is_ok(), expected, "{found:?}");
    }
}
