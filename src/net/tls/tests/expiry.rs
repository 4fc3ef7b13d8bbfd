//! When certificates in use expire.

use super::super::Expiry;
use super::*;

fn until(authority: &Authority, year: i32) -> Pair {
    let key = KeyPair::generate().expect("a key");
    authority.issue_with(key, None, &["server.test"], |params| {
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
    })
}

fn seconds(year: i32) -> i64 {
    rcgen::date_time_ymd(year, 1, 1).unix_timestamp()
}

#[tokio::test]
async fn what_is_in_use_counts() {
    let mut authorities = [2040, 2035].map(|year| {
        let mut authority = Authority::new("ca");
        authority.params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let signed = authority.params.self_signed(&authority.pair.key);
        let signed = signed.expect("signs");
        (authority.pair.pem, authority.pair.der) = (signed.pem(), signed.der().clone());
        authority
    });
    let [newer, older] = &mut authorities;
    let files = Files::new();
    let pair = until(newer, 2031);
    let settings = files.settings(&pair, Some(&[&older.pair, &newer.pair]));
    let server = server(&settings).expect("starts");
    let expiry = |shown: i32, authorities: i32| Expiry {
        shown: Some(seconds(shown)),
        authorities: Some(seconds(authorities)),
    };
    assert_eq!(server.expiry().await, expiry(2031, 2040));
    files.write("ca.pem", &older.pair.pem);
    assert_eq!(server.expiry().await, expiry(2031, 2035));
    // The first of a chain ends it.
    let renewed = until(newer, 2045);
    let intermediate = until(newer, 2033);
    files.write("key.pem", &renewed.key.serialize_pem());
    files.write("cert.pem", &(renewed.pem.clone() + &intermediate.pem));
    assert_eq!(server.expiry().await, expiry(2033, 2035));
    files.write("cert.pem", "broken");
    assert_eq!(server.expiry().await, expiry(2033, 2035));

    let client = |verifies, pair| ClientSettings {
        pair,
        verifies,
        authorities: Some(files.path("ca.pem")),
        revoked: None,
        allowed: Allowed::default(),
        protocol: any(),
    };
    files.write("cert.pem", &renewed.pem);
    let shown = Some((files.path("cert.pem"), files.path("key.pem")));
    for (settings, expected) in [
        (client(true, shown.clone()), expiry(2045, 2035)),
        (
            client(false, shown),
            Expiry {
                authorities: None,
                ..expiry(2045, 0)
            },
        ),
        (
            client(true, None),
            Expiry {
                shown: None,
                ..expiry(0, 2035)
            },
        ),
    ] {
        let client = TlsClient::new("test", settings).expect("starts");
        assert_eq!(client.expiry().await, expected);
    }
}
