//! Who a client is: by the context file's token, for one identity a connection, and after a reload. And the
//! one judgement of settings.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use millstream_broker::{Broker, Config, PrincipalSettings};
use millstream_protocol::messages::{
    HelloRequest, HelloResponse, ListTopicsRequest, ListTopicsResponse,
};
use millstream_protocol::{Code, Kind};
use quinn::ConnectionError;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::client::{Client, World};

/// `printf %s alice | sha256sum`
const ALICE: &str = "2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90";
/// `printf %s bob | sha256sum`
const BOB: &str = "81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9";

fn principal(name: &str, token_sha256: &str, rights: &[&str]) -> PrincipalSettings {
    PrincipalSettings {
        name: name.to_owned(),
        token_sha256: Some(token_sha256.to_owned()),
        rights: rights.iter().map(|&right| right.to_owned()).collect(),
        ..PrincipalSettings::default()
    }
}

async fn hello(client: &Client, token: &str) -> Result<HelloResponse, u32> {
    let hello = HelloRequest {
        version_min: 1,
        version_max: 1,
        token: token.to_owned(),
        ..HelloRequest::default()
    };
    let answer = client.request(Kind::Hello, &hello).await;
    answer.map_err(|error| error.code)
}

async fn closed_with(client: &Client) -> u32 {
    match client.connection.closed().await {
        ConnectionError::ApplicationClosed(close) => {
            close.error_code.into_inner().try_into().expect("a code")
        }
        other => panic!("closed without a code: {other}"),
    }
}

/// Other users of the machine reach its loopback; they do not read the owner's files.
#[test]
fn on_loopback_all_is_granted_to_who_reads_the_context_file() {
    let mut world = World::new(|_| {});
    let context = world.broker().context();
    let mode = std::fs::metadata(&context)
        .expect("it is there")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let token = world.token();
    world.run(async {
        for wrong in ["", "guessed"] {
            let stranger = world.connect_silently().await;
            let refused = hello(&stranger, wrong).await;
            assert_eq!(refused.map(|_| ()), Err(Code::Unauthenticated.number()));
        }
        let owner = world.connect_silently().await;
        let known = hello(&owner, &token).await.expect("known");
        assert_eq!(known.principal, "owner");
    });
    world.stop();
    world.start_again();
    assert_eq!(
        world.token(),
        token,
        "clients find in again after a restart"
    );
}

#[test]
fn a_connection_has_one_identity() {
    let world = World::new(|config| {
        config.principals = vec![
            principal("alice", ALICE, &["produce"]),
            principal("bob", BOB, &["admin", "deploy"]),
        ];
    });
    world.run(async {
        let client = world.connect_silently().await;
        for _ in 0..2 {
            let known = hello(&client, "alice").await.expect("known");
            assert_eq!(known.principal, "alice", "the same again changes nothing");
        }
        let switched = hello(&client, "bob").await;
        assert_eq!(switched.map(|_| ()), Err(Code::BadRequest.number()));
        assert_eq!(closed_with(&client).await, Code::BadRequest.number());
    });
}

#[test]
fn a_reload_takes_principals() {
    let world = World::new(|config| {
        config.principals = vec![
            principal("alice", ALICE, &["admin"]),
            principal("bob", BOB, &["produce"]),
        ];
    });
    world.run(async {
        let connect = async |token| {
            let client = world.connect_silently().await;
            hello(&client, token).await.expect("known");
            client
        };
        let (alice, bob) = (connect("alice").await, connect("bob").await);
        let mut config = world.config.clone();
        config.principals[0].rights = vec!["consume".to_owned()];
        config.limits.drain_ms += 1;
        world.broker().reload(config.clone()).expect("reloaded");
        assert_eq!(closed_with(&alice).await, Code::Stopping.number());
        let _: ListTopicsResponse = bob
            .request(Kind::ListTopics, &ListTopicsRequest::default())
            .await
            .expect("nothing changed for this one");
        connect("alice").await;
        config.principals.remove(1);
        world.broker().reload(config.clone()).expect("reloaded");
        assert_eq!(closed_with(&bob).await, Code::Unauthenticated.number());
        let before = connect("alice").await;
        config.tls.certificate = Some("nowhere.pem".into());
        config.tls.key = Some("nowhere.key".into());
        config.principals.clear();
        world
            .broker()
            .reload(config)
            .expect_err("it would not start");
        hello(&before, "alice").await.expect("nothing was reloaded");
    });
}

/// A certificate for localhost and its key, as files.
fn certificate(folder: &Path, name: &str, days: i32) -> (PathBuf, PathBuf) {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020 + days / 365, 1, 1);
    let key = rcgen::KeyPair::generate().expect("a key");
    let made = params.self_signed(&key).expect("made");
    let (pem, secret) = (folder.join(name), folder.join(format!("{name}.key")));
    std::fs::write(&pem, made.pem()).expect("written");
    std::fs::write(&secret, key.serialize_pem()).expect("written");
    (pem, secret)
}

#[test]
fn a_reload_takes_the_certificate() {
    let files = tempfile::tempdir().expect("a directory");
    let (pem, key) = certificate(files.path(), "broker.pem", 365 * 60);
    let world = World::new(|config| {
        config.tls.certificate = Some(pem.clone());
        config.tls.key = Some(key.clone());
    });
    let expires = || world.metric("millstream_certificate_expiry_timestamp_seconds");
    let trusts = |pem: &Path| {
        let roots = CertificateDer::from_pem_file(pem).expect("PEM");
        world.trusting(roots)
    };
    let first = expires();
    let old = trusts(&pem);
    world.run(async {
        world.connect_as(old.clone()).await.expect("the first one");
    });
    certificate(files.path(), "broker.pem", 365 * 61);
    world
        .broker()
        .reload(world.config.clone())
        .expect("reloaded");
    assert!(expires() > first);
    let new = trusts(&pem);
    world.run(async {
        // Each thread takes it by itself.
        while world.connect_as(new.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
        while world.connect_as(old.clone()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
}

/// What a setting is changed to.
type Change<'a> = &'a dyn Fn(&mut Config);

/// What is judged good starts, and what does not start is judged with the same words.
#[test]
fn settings_are_judged_as_the_start_judges_them() {
    let files = tempfile::tempdir().expect("a directory");
    let path = files.path();
    let (pem, key) = certificate(path, "broker.pem", 365 * 60);
    let (_, other_key) = certificate(path, "other.pem", 365 * 60);
    let (expired, expired_key) = certificate(path, "expired.pem", 365);
    std::fs::write(path.join("file"), "").expect("written");
    std::fs::write(path.join("empty.pem"), "").expect("written");
    let data = path.join("data");
    drop(millstream_broker::Directory::open(&data, Some(2), 1).expect("made"));
    let with = |change: Change<'_>| {
        let mut config = Config {
            data: data.clone(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            http_off: true,
            ..Config::default()
        };
        config.tls.certificate = Some(pem.clone());
        config.tls.key = Some(key.clone());
        change(&mut config);
        config
    };
    let refused: [(&str, Change<'_>); 10] = [
        ("no certificate file", &|config| {
            config.tls.certificate = Some(path.join("nowhere.pem"));
        }),
        ("not its key", &|config| {
            config.tls.key = Some(other_key.clone());
        }),
        ("no key in the file", &|config| {
            config.tls.key = Some(pem.clone());
        }),
        ("no key", &|config| config.tls.key = None),
        ("no authority in the file", &|config| {
            config.tls.client_ca = Some(path.join("empty.pem"));
        }),
        ("below a file", &|config| {
            config.data = path.join("file/data");
        }),
        ("a file", &|config| {
            config.data = path.join("file");
        }),
        ("where nothing can be made", &|config| {
            config.data = "/proc/millstream".into();
        }),
        ("another number of shards", &|config| {
            config.shards = Some(3);
        }),
        ("no address of this machine", &|config| {
            config.listen = "203.0.113.1:0".parse().expect("an address");
            config.dev = true;
        }),
    ];
    for (what, change) in refused {
        let config = with(change);
        let judged = millstream_broker::check(&config).expect_err(what);
        let started = Broker::start(config).expect_err(what);
        assert_eq!(judged.to_string(), started.to_string(), "{what}");
    }
    assert_eq!(
        millstream_broker::check(&with(&|_| {})).expect("good"),
        [""; 0]
    );
    let old = with(&|config| {
        config.tls.certificate = Some(expired.clone());
        config.tls.key = Some(expired_key.clone());
    });
    let warnings = millstream_broker::check(&old).expect("a clock may be wrong");
    assert!(warnings[0].contains("expired"), "{warnings:?}");
    assert!(!path.join("new").exists());
    let new = with(&|config| config.data = path.join("new/deep"));
    millstream_broker::check(&new).expect("it can be made");
    assert!(!path.join("new").exists(), "looking makes nothing");
}
