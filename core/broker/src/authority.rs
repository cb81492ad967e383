//! Who a client is, and what it may do. Every request asks here.
//!
//! Absent: TLS (certificates come here when they are verified) and the requests themselves.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use millstream_protocol::Code;
use millstream_protocol::messages;
use rustc_hash::FxHashMap;
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{Config, PrincipalSettings};

/// Requests for much that are answered at a time for one principal.
const TURNS: usize = 4;

/// Partitions that are opened at a time for one principal.
const OPENINGS: usize = 256;

/// What one may be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Right {
    Produce = 1,
    Consume = 2,
    Admin = 4,
    /// Running code in the broker is a right of its own.
    Deploy = 8,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Produce => "produce",
            Self::Consume => "consume",
            Self::Admin => "admin",
            Self::Deploy => "deploy",
        })
    }
}

/// A client that is known, and its rights.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) name: String,
    grants: Vec<Grant>,
    /// Partitions that its subscriptions read, on all threads.
    reading: Arc<AtomicUsize>,
    /// Turns for requests that ask for much.
    turns: Arc<Semaphore>,
    /// Turns for partitions that its subscriptions open.
    openings: Arc<Semaphore>,
}

/// Rights for names that begin with `prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    rights: u8,
    prefix: String,
}

impl Principal {
    fn with_all(name: &str) -> Self {
        let rights =
            Right::Produce as u8 | Right::Consume as u8 | Right::Admin as u8 | Right::Deploy as u8;
        Self {
            name: name.to_owned(),
            grants: vec![Grant {
                rights,
                prefix: String::new(),
            }],
            reading: Arc::default(),
            turns: turns(),
            openings: openings(),
        }
    }

    /// Whether this is the same one with the same rights.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && self.grants == other.grants
    }

    /// Turns for partitions that are opened: wait for one, or others wait behind all of them.
    pub(crate) fn openings(&self) -> &Arc<Semaphore> {
        &self.openings
    }

    /// Wait for a turn to ask for much: lists and descriptions of one principal take turns, so that the shards
    /// have time for others.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }

    /// How many partitions its subscriptions read.
    pub(crate) fn reading(&self) -> &Arc<AtomicUsize> {
        &self.reading
    }

    /// Whether this right holds for the topic or group of this name.
    pub(crate) fn may(&self, right: Right, name: &str) -> bool {
        self.grants
            .iter()
            .any(|grant| grant.rights & right as u8 != 0 && name.starts_with(&grant.prefix))
    }

    /// Whether this right holds for anything at all.
    pub(crate) fn may_somewhere(&self, right: Right) -> bool {
        self.grants
            .iter()
            .any(|grant| grant.rights & right as u8 != 0)
    }

    /// Whether this right holds for everything.
    pub(crate) fn may_everywhere(&self, right: Right) -> bool {
        self.grants
            .iter()
            .any(|grant| grant.rights & right as u8 != 0 && grant.prefix.is_empty())
    }

    /// Whether there is any right for the topic of this name.
    pub(crate) fn sees(&self, name: &str) -> bool {
        self.grants
            .iter()
            .any(|grant| grant.rights != 0 && name.starts_with(&grant.prefix))
    }

    /// [`may`](Self::may), as what a request answers when not.
    pub(crate) fn check(&self, right: Right, name: &str) -> Result<(), messages::Error> {
        if self.may(right, name) {
            return Ok(());
        }
        Err(Code::Forbidden.error(format!(
            "`{}` has not the right to {right} `{name}`",
            self.name
        )))
    }

    /// As [`check`](Self::check), for what concerns the whole broker.
    pub(crate) fn check_everywhere(&self, right: Right) -> Result<(), messages::Error> {
        if self.may_everywhere(right) {
            return Ok(());
        }
        Err(Code::Forbidden.error(format!(
            "`{}` has not the right `{right}` for the whole broker",
            self.name
        )))
    }

    /// As [`check`](Self::check), for what is nobody's in particular.
    pub(crate) fn check_somewhere(&self, right: Right) -> Result<(), messages::Error> {
        if self.may_somewhere(right) {
            return Ok(());
        }
        Err(Code::Forbidden.error(format!("`{}` has not the right to {right}", self.name)))
    }
}

/// Everyone the broker knows.
#[derive(Debug)]
pub(crate) struct Authority {
    /// Whether all is granted to whoever has the token of the broker's context file.
    to_owner: bool,
    by_token: FxHashMap<[u8; 32], Arc<Principal>>,
    by_certificate: FxHashMap<String, Arc<Principal>>,
}

impl Authority {
    /// Everyone that the settings name. Those of `before` whom nothing changed stay the same, with what is
    /// counted of them.
    pub(crate) fn new(config: &Config, owner_token: &str, before: Option<&Self>) -> Self {
        let kept = |new: Principal| {
            let known = before.and_then(|before| before.named(&new.name));
            known
                .filter(|old| old.is_same(&new))
                .map_or_else(|| Arc::new(new), Arc::clone)
        };
        let mut by_name: FxHashMap<&str, Principal> = FxHashMap::default();
        for settings in &config.principals {
            let name = settings.name.as_str();
            let principal = by_name.entry(name).or_insert_with(|| Principal {
                name: name.to_owned(),
                grants: Vec::new(),
                reading: Arc::default(),
                turns: turns(),
                openings: openings(),
            });
            principal.grants.push(Grant {
                rights: rights(settings),
                prefix: settings.topics.clone(),
            });
        }
        let shared: FxHashMap<&str, Arc<Principal>> = by_name
            .into_iter()
            .map(|(name, principal)| (name, kept(principal)))
            .collect();
        let mut by_token = FxHashMap::default();
        let mut by_certificate = FxHashMap::default();
        for settings in &config.principals {
            let principal = &shared[settings.name.as_str()];
            if let Some(hash) = settings.token_sha256.as_deref().and_then(parse_hash) {
                by_token.insert(hash, Arc::clone(principal));
            }
            if let Some(certificate) = &settings.certificate {
                by_certificate.insert(certificate.clone(), Arc::clone(principal));
            }
        }
        let to_owner = config.grants_all();
        if to_owner {
            by_token.insert(hash(owner_token), kept(Principal::with_all("owner")));
        }
        Self {
            to_owner,
            by_token,
            by_certificate,
        }
    }

    /// Whether all is granted to whoever has the token of the broker's context file.
    pub(crate) fn grants_all(&self) -> bool {
        self.to_owner
    }

    /// Who this is, by what it shows.
    pub(crate) fn authenticate(&self, shown: &Shown) -> Result<Arc<Principal>, messages::Error> {
        let certificates = shown.certificates.as_deref();
        let known = match &shown.token {
            Some(token) => self.by_token.get(token).cloned(),
            None => certificates.and_then(|chain| self.by_certificate(chain)),
        };
        known.ok_or_else(|| {
            let mut error = Code::Unauthenticated.error(match (&shown.token, certificates) {
                (Some(_), _) => "the token is not one that this broker knows",
                (None, Some(_)) => "the certificate names no principal that this broker knows",
                (None, None) => "this broker asks for a token or a client certificate",
            });
            if self.to_owner {
                error.hint = "Use the broker's context file, context.toml in its data directory: it has the token of \
                              whoever owns the broker."
                    .to_owned();
            }
            error
        })
    }

    fn named(&self, name: &str) -> Option<&Arc<Principal>> {
        let mut all = self.by_token.values().chain(self.by_certificate.values());
        all.find(|principal| principal.name == name)
    }

    fn by_certificate(&self, chain: &[CertificateDer<'_>]) -> Option<Arc<Principal>> {
        let certificate = webpki::EndEntityCert::try_from(chain.first()?).ok()?;
        let principal = certificate
            .valid_dns_names()
            .chain(certificate.valid_uri_names())
            .find_map(|name| self.by_certificate.get(name));
        principal.cloned()
    }
}

fn turns() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(TURNS))
}

/// What a client shows of itself: kept while it is connected, and looked at again when those who are known
/// change.
#[derive(Debug)]
pub(crate) struct Shown {
    /// SHA-256 of the token of HELLO.
    token: Option<[u8; 32]>,
    /// What TLS has verified.
    certificates: Option<Vec<CertificateDer<'static>>>,
}

impl Shown {
    pub(crate) fn new(token: &str, certificates: Option<Vec<CertificateDer<'static>>>) -> Self {
        Self {
            token: (!token.is_empty()).then(|| hash(token)),
            certificates,
        }
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn openings() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(OPENINGS))
}

fn rights(settings: &PrincipalSettings) -> u8 {
    let right = |name: &String| match name.as_str() {
        "produce" => Right::Produce as u8,
        "consume" => Right::Consume as u8,
        "admin" => Right::Admin as u8,
        "deploy" => Right::Deploy as u8,
        _ => 0, // refused by Config::check
    };
    settings
        .rights
        .iter()
        .map(right)
        .fold(0, |all, one| all | one)
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(
        name: &str,
        token_sha256: &str,
        rights: &[&str],
        topics: &str,
    ) -> PrincipalSettings {
        PrincipalSettings {
            name: name.to_owned(),
            token_sha256: Some(token_sha256.to_owned()),
            certificate: None,
            rights: rights.iter().map(|&right| right.to_owned()).collect(),
            topics: topics.to_owned(),
        }
    }

    fn token(token: &str) -> Shown {
        Shown::new(token, None)
    }

    /// `printf %s secret | sha256sum`
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    #[test]
    fn rights_hold_for_their_prefix_alone() {
        let config = Config {
            principals: vec![
                principal("app", SECRET, &["produce"], "shop."),
                principal("app", SECRET, &["consume"], ""),
            ],
            ..Config::default()
        };
        let authority = Authority::new(&config, "owner's", None);
        assert!(
            !authority.grants_all(),
            "who is named ends the default of loopback"
        );
        let app = authority.authenticate(&token("secret")).expect("known");
        assert!(app.may(Right::Produce, "shop.orders") && !app.may(Right::Produce, "other"));
        assert!(app.may(Right::Consume, "other") && app.may_everywhere(Right::Consume));
        assert!(!app.may_everywhere(Right::Produce) && app.may_somewhere(Right::Produce));
        assert!(!app.may_somewhere(Right::Admin) && !app.may_somewhere(Right::Deploy));
        let error = app
            .check(Right::Deploy, "shop.orders")
            .expect_err("not granted");
        assert_eq!(error.code, Code::Forbidden.number());
        for wrong in ["", "Secret", SECRET, "owner's"] {
            let error = authority.authenticate(&token(wrong)).expect_err("unknown");
            assert_eq!(error.code, Code::Unauthenticated.number());
        }
    }

    #[test]
    fn a_reload_keeps_whom_nothing_changed() {
        let with = |rights: &[&str]| Config {
            principals: vec![principal("app", SECRET, rights, "")],
            ..Config::default()
        };
        let shown = token("secret");
        let known = |authority: &Authority| authority.authenticate(&shown).expect("known");
        let first = Authority::new(&with(&["produce"]), "", None);
        let same = Authority::new(&with(&["produce"]), "", Some(&first));
        assert!(Arc::ptr_eq(&known(&first), &known(&same)));
        let other = Authority::new(&with(&["consume"]), "", Some(&same));
        assert!(!known(&other).is_same(&known(&same)));
    }

    #[test]
    fn loopback_without_principals_grants_all_to_its_owner_alone() {
        let authority = Authority::new(&Config::default(), "owner's", None);
        assert!(authority.grants_all());
        let owner = authority
            .authenticate(&token("owner's"))
            .expect("the owner");
        assert!(owner.may_everywhere(Right::Deploy) && owner.may_everywhere(Right::Admin));
        for wrong in ["", "another"] {
            let error = authority
                .authenticate(&token(wrong))
                .expect_err("another user of the machine");
            assert_eq!(error.code, Code::Unauthenticated.number());
            assert!(error.hint.contains("context.toml"), "{}", error.hint);
        }
    }
}
