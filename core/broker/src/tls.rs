//! Certificates and TLS settings: those configured, or ones made for this machine.
//!
//! Made ones live in `DIR/tls`: an authority, a certificate for the broker (localhost, 127.0.0.1, ::1
//! and the listen address) and one for clients. Kept over restarts so that clients find the same broker
//! again, and made anew by a start that finds them older than [`KEPT_FOR`]. No clock ends them: who cannot
//! connect cannot set a wrong clock right. `DIR/context.toml` carries what a client needs. The authority's
//! key is never written down.

mod validity;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub(crate) use self::validity::Validity;
use crate::Error;
use crate::config::Config;
use crate::directory::{Directory, write_file};

/// How old certificates made here may be at a start. They are for development.
const KEPT_FOR: Duration = Duration::from_secs(45 * 24 * 3600);

/// What the endpoint needs, and what a client on this machine needs.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) server: Arc<rustls::ServerConfig>,
    /// When the certificate holds; unknown when it cannot be read.
    pub(crate) validity: Option<Validity>,
    /// Set when certificates were made here.
    pub(crate) made: Option<Made>,
}

/// PEM texts for the context file.
#[derive(Debug)]
pub(crate) struct Made {
    authority: String,
    client: String,
    client_key: String,
}

/// The crypto of all endpoints: AES-128-GCM first, because it is the fastest on machines that have
/// instructions for it.
pub(crate) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..rustls::crypto::ring::default_provider()
    }
}

/// Whether the configured certificates can be used, and when the broker's holds; nothing when one would be
/// made.
pub(crate) fn check(config: &Config) -> Result<Option<Validity>, Error> {
    match configured(config)? {
        Some((chain, key)) => {
            let validity = Validity::of_chain(&chain);
            server(chain, key, client_roots(config)?)?;
            Ok(validity)
        }
        None => client_roots(config).map(|_| None),
    }
}

/// Load the configured certificates, or make some.
pub(crate) fn identity(config: &Config, directory: &Directory) -> Result<Identity, Error> {
    let mut roots = client_roots(config)?;
    let (chain, key, made) = match configured(config)? {
        Some((chain, key)) => (chain, key, None),
        None => {
            let (chain, key, made) = kept_or_made(config.listen.ip(), directory)?;
            let origin = "the authority made here";
            add_roots(&mut roots, made.authority.as_bytes(), origin)?;
            (chain, key, Some(made))
        }
    };
    Ok(Identity {
        validity: Validity::of_chain(&chain),
        server: server(chain, key, roots)?,
        made,
    })
}

/// The configured chain and key.
fn configured(
    config: &Config,
) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, Error> {
    match (&config.tls.certificate, &config.tls.key) {
        (Some(certificate), Some(key)) => Ok(Some((read_chain(certificate)?, read_key(key)?))),
        _ => Ok(None),
    }
}

/// The configured authorities of clients.
fn client_roots(config: &Config) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &config.tls.client_ca {
        let origin = path.display().to_string();
        add_roots(&mut roots, &read(path)?, &origin)?;
        if roots.is_empty() {
            return Err(Error::Tls(format!("{origin} holds no certificate in PEM")));
        }
    }
    Ok(roots)
}

/// Settings of all endpoints. The key must be that of the chain's first certificate.
fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_roots: RootCertStore,
) -> Result<Arc<rustls::ServerConfig>, Error> {
    let provider = Arc::new(provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?;
    let builder = if client_roots.is_empty() {
        builder.with_no_client_auth()
    } else {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(client_roots), provider)
                .allow_unauthenticated() // a token may come in HELLO
                .build()
                .map_err(|error| Error::Tls(error.to_string()))?;
        builder.with_client_cert_verifier(verifier)
    };
    let mut server = builder.with_single_cert(chain, key).map_err(tls)?;
    server.alpn_protocols = vec![millstream_protocol::ALPN.to_vec()];
    server.ignore_client_order = true;
    server.max_early_data_size = 0; // what is replayed by a third party must not be produced twice
    Ok(Arc::new(server))
}

/// Write the file that tells clients on this machine how to connect. `owner_token` is that of whoever may
/// do everything, where there is such a one. The file is for its owner alone.
pub(crate) fn write_context(
    directory: &Directory,
    made: Option<&Made>,
    owner_token: Option<&str>,
    address: SocketAddr,
) -> Result<(), Error> {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let url = format!("millstream://{}", SocketAddr::new(ip, address.port()));
    let mut context = toml::Table::new();
    for (key, value) in [
        ("url", Some(&*url)),
        ("ca_pem", made.map(|made| &*made.authority)),
        ("cert_pem", made.map(|made| &*made.client)),
        ("key_pem", made.map(|made| &*made.client_key)),
        ("token", owner_token),
    ] {
        if let Some(value) = value {
            context.insert(key.to_owned(), toml::Value::String(value.to_owned()));
        }
    }
    let text = format!(
        "# How a client on this machine connects. Written by the broker at each start.\n{}",
        toml::to_string_pretty(&context).expect("strings have a TOML form")
    );
    let path = directory.context();
    write_file(&path, text.as_bytes(), 0o600)
        .map_err(|source| Error::directory(directory.path(), "write the context file to", &source))
}

type Loaded = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, Made);

/// When and for which address the certificates in `DIR/tls` were made.
#[derive(PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Record {
    made_at_s: u64,
    listen: IpAddr,
}

/// The certificates made at an earlier start, when they still serve, else new ones.
fn kept_or_made(listen: IpAddr, directory: &Directory) -> Result<Loaded, Error> {
    let now_s = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    if let Some(kept) = kept(listen, now_s, &directory.tls()) {
        return Ok(kept);
    }
    let (texts, made) = make(listen)?;
    let record = toml::to_string(&Record {
        made_at_s: now_s,
        listen,
    })
    .expect("plain values have a TOML form");
    let tls = directory.tls();
    for (name, text, mode) in [
        ("ca.pem", &made.authority, 0o644),
        ("client.pem", &made.client, 0o644),
        ("client.key", &made.client_key, 0o600),
        ("broker.pem", &texts.0, 0o644),
        ("broker.key", &texts.1, 0o600),
        ("made.toml", &record, 0o644), // last: it vouches for the others
    ] {
        write_file(&tls.join(name), text.as_bytes(), mode).map_err(|source| {
            Error::directory(directory.path(), "write a certificate to", &source)
        })?;
    }
    Ok((
        read_chain(&tls.join("broker.pem"))?,
        read_key(&tls.join("broker.key"))?,
        made,
    ))
}

fn kept(listen: IpAddr, now_s: u64, tls: &Path) -> Option<Loaded> {
    let record: Record =
        toml::from_str(&std::fs::read_to_string(tls.join("made.toml")).ok()?).ok()?;
    let age_s = now_s.checked_sub(record.made_at_s)?;
    if record.listen != listen || age_s > KEPT_FOR.as_secs() {
        return None;
    }
    let chain = read_chain(&tls.join("broker.pem")).ok()?;
    if Validity::of_chain(&chain)?.not_before_s > 0 {
        return None; // of an earlier version, whose certificates a wrong clock ends
    }
    let text = |name: &str| std::fs::read_to_string(tls.join(name)).ok();
    let made = Made {
        authority: text("ca.pem")?,
        client: text("client.pem")?,
        client_key: text("client.key")?,
    };
    Some((chain, read_key(&tls.join("broker.key")).ok()?, made))
}

/// The broker's certificate and key, and what clients need, in PEM.
fn make(listen: IpAddr) -> Result<((String, String), Made), Error> {
    let failed = |error: rcgen::Error| Error::Tls(format!("cannot make a certificate: {error}"));
    let mut params = named("Millstream development authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(failed)?)
        .map_err(failed)?;

    let mut params = named("Millstream development broker");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    if !addresses.contains(&listen) && !listen.is_unspecified() {
        addresses.push(listen);
    }
    params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().map_err(failed)?)];
    let addresses = addresses.into_iter().map(SanType::IpAddress);
    params.subject_alt_names.extend(addresses);
    let broker_key = KeyPair::generate().map_err(failed)?;
    let broker = params.signed_by(&broker_key, &authority).map_err(failed)?;

    let mut params = named("Millstream development client");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::DnsName(
        "client.millstream.localhost".try_into().map_err(failed)?,
    )];
    let client_key = KeyPair::generate().map_err(failed)?;
    let client = params.signed_by(&client_key, &authority).map_err(failed)?;

    let made = Made {
        authority: authority.pem(),
        client: client.pem(),
        client_key: client_key.serialize_pem(),
    };
    Ok(((broker.pem(), broker_key.serialize_pem()), made))
}

/// Holds from 1970 on, without an end (RFC 5280, 4.1.2.5).
fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    params
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path)
        .map_err(|error| Error::Tls(format!("cannot read {}: {error}", path.display())))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(Error::Tls(format!(
            "{} holds no certificate in PEM",
            path.display()
        ))),
        Err(error) => Err(Error::Tls(format!("{}: {error}", path.display()))),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| {
        Error::Tls(format!(
            "{} holds no private key in PEM: {error}",
            path.display()
        ))
    })
}

fn add_roots(roots: &mut RootCertStore, pem: &[u8], origin: &str) -> Result<(), Error> {
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| Error::Tls(format!("{origin}: {error}")))?;
        roots
            .add(certificate)
            .map_err(|error| Error::Tls(format!("{origin}: {error}")))?;
    }
    Ok(())
}

fn tls(error: rustls::Error) -> Error {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            Error::Tls("tls.key is not the key of tls.certificate".to_owned())
        }
        other => Error::Tls(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which addresses a made certificate names: clients check that before anything else.
    #[test]
    fn a_made_certificate_names_the_address_it_listens_on() {
        let names = |listen: &str, name: &str| {
            let listen = listen.parse().expect("an address");
            let ((certificate, _), _) = make(listen).expect("made");
            let der = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
            let name = rustls_pki_types::ServerName::try_from(name).expect("a name");
            webpki::EndEntityCert::try_from(&der)
                .expect("a certificate")
                .verify_is_valid_for_subject_name(&name)
                .is_ok()
        };
        for listen in ["127.0.0.1", "127.0.0.5", "::1", "0.0.0.0", "192.0.2.7"] {
            assert!(
                names(listen, "localhost") && names(listen, "127.0.0.1"),
                "{listen}"
            );
        }
        assert!(names("127.0.0.5", "127.0.0.5") && names("192.0.2.7", "192.0.2.7"));
        assert!(!names("127.0.0.1", "127.0.0.5"));
    }

    /// A client checks the certificate by a clock that may be as wrong as the broker's.
    #[test]
    fn no_clock_ends_a_made_certificate() {
        let listen = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let ((broker, _), made) = make(listen).expect("made");
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let (broker, authority) = (der(&broker), der(&made.authority));
        let certificate = webpki::EndEntityCert::try_from(&broker).expect("a certificate");
        let root = webpki::anchor_from_trusted_cert(&authority).expect("an authority");
        for years in [0, 30, 56, 200] {
            let since = Duration::from_secs(years * 365 * 24 * 3600);
            let verified = certificate.verify_for_usage(
                provider().signature_verification_algorithms.all,
                std::slice::from_ref(&root),
                &[],
                rustls_pki_types::UnixTime::since_unix_epoch(since),
                webpki::KeyUsage::server_auth(),
                None,
                None,
            );
            assert!(verified.is_ok(), "{years}: {:?}", verified.err());
        }
        let validity = Validity::of_chain(&[broker]).expect("read");
        assert_eq!(validity.warning(0).or(validity.warning(1 << 33)), None);
    }
}
