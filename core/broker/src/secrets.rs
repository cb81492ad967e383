//! What the broker knows and nobody else does, over restarts: one random key in the data directory
//! (`DIR/secret.key`, mode 0600), and the keys that are derived from it for each use.
//!
//! A key that is lost is made again, at a price that each use states. Absent: TLS keys (`tls`), and the
//! keys of single connections (QUIC's own).

use std::fmt;
use std::fs;
use std::io;

use bytes::Bytes;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{hkdf, hmac};

use crate::Error;
use crate::directory::{Directory, write_file};

const KEY_BYTES: usize = 32;

/// The key of one data directory.
pub(crate) struct Secrets {
    derive: hkdf::Prk,
    producers: hmac::Key,
    members: hmac::Key,
    topics: hmac::Key,
}

impl Secrets {
    /// Read the key, or make it at the first start.
    pub(crate) fn open(directory: &Directory) -> Result<Self, Error> {
        let path = directory.secret();
        let key: [u8; KEY_BYTES] = match fs::read(&path) {
            Ok(bytes) => bytes.try_into().map_err(|_| Error::Meta {
                path: path.clone(),
                why: format!(
                    "not {KEY_BYTES} bytes: restore it, or remove it and the broker makes a new one"
                ),
            })?,
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                let mut key = [0; KEY_BYTES];
                SystemRandom::new()
                    .fill(&mut key)
                    .map_err(|_| Error::Internal("the system has no entropy".to_owned()))?;
                write_file(&path, &key, 0o600)
                    .map_err(|source| Error::directory(directory.path(), "write to", &source))?;
                key
            }
            Err(source) => return Err(Error::directory(directory.path(), "read", &source)),
        };
        let derive = hkdf::Salt::new(hkdf::HKDF_SHA256, b"millstream").extract(&key);
        let producers = hmac_key(&derive, b"producer ids");
        let members = hmac_key(&derive, b"group members");
        let topics = hmac_key(&derive, b"topic ids");
        Ok(Self {
            derive,
            producers,
            members,
            topics,
        })
    }

    /// For QUIC's stateless resets (RFC 9000, 10.3): the same on every endpoint and after a restart, so
    /// that a client whose connection is no longer known hears of it with its next packet. Without it,
    /// clients notice by their idle timeout.
    pub(crate) fn reset_key(&self) -> hmac::Key {
        hmac_key(&self.derive, b"quic stateless reset")
    }

    /// The token of whoever may do everything, on a broker without principals: the context file carries it.
    /// The same after a restart, so that clients that read the file before find in again.
    pub(crate) fn owner_token(&self) -> String {
        let tag = hmac::sign(&hmac_key(&self.derive, b"owner"), b"token");
        let digits = tag.as_ref().iter().map(|byte| format!("{byte:02x}"));
        digits.collect()
    }

    /// Proves that a producer id was given to the principal of this name. Without the key, ids of before
    /// are nobody's: their producers have to ask for new ones.
    pub(crate) fn producer_token(&self, pid: u64, principal: &str) -> Bytes {
        let tag = hmac::sign(&self.producers, &producer(pid, principal));
        Bytes::copy_from_slice(tag.as_ref())
    }

    /// Whether `token` is [`producer_token`](Self::producer_token) of these. In constant time.
    pub(crate) fn is_producer_token(&self, pid: u64, principal: &str, token: &[u8]) -> bool {
        hmac::verify(&self.producers, &producer(pid, principal), token).is_ok()
    }

    /// Proves that this member of the group joined as the principal of this name. Without the key, members
    /// of before join anew.
    pub(crate) fn member_token(&self, group: &str, member: u64, principal: &str) -> Bytes {
        let tag = hmac::sign(&self.members, &membership(group, member, principal));
        Bytes::copy_from_slice(tag.as_ref())
    }

    /// Whether `token` is [`member_token`](Self::member_token) of these. In constant time.
    pub(crate) fn is_member_token(
        &self,
        group: &str,
        member: u64,
        principal: &str,
        token: &[u8],
    ) -> bool {
        let claim = membership(group, member, principal);
        hmac::verify(&self.members, &claim, token).is_ok()
    }

    /// The id of the topic that this request creates, whenever it is repeated: a UUID (RFC 9562, version
    /// 8) that nobody can choose. Without the key, a repeat is taken for another request.
    pub(crate) fn topic_id(&self, principal: &str, name: &str, key: &[u8]) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.topics);
        for part in [principal.as_bytes(), name.as_bytes(), key] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut id = [0; 16];
        id.copy_from_slice(&context.sign().as_ref()[..16]);
        id[6] = id[6] & 0x0f | 0x80;
        id[8] = id[8] & 0x3f | 0x80;
        id
    }
}

fn producer(pid: u64, principal: &str) -> Vec<u8> {
    [&pid.to_le_bytes(), principal.as_bytes()].concat()
}

fn membership(group: &str, member: u64, principal: &str) -> Vec<u8> {
    [
        &member.to_le_bytes()[..],
        &(group.len() as u64).to_le_bytes(),
        group.as_bytes(),
        principal.as_bytes(),
    ]
    .concat()
}

fn hmac_key(derive: &hkdf::Prk, label: &[u8]) -> hmac::Key {
    let label = [label];
    let derived = derive.expand(&label, hmac::HMAC_SHA256);
    derived.expect("one digest is not too long").into()
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_is_made_once_for_its_owner_alone() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(root.path(), None, 1).expect("made");
        let mac = |secrets: &Secrets| hmac::sign(&secrets.reset_key(), b"x").as_ref().to_vec();
        let first = mac(&Secrets::open(&directory).expect("made"));
        let path = directory.secret();
        let mode = fs::metadata(&path).expect("it is there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        assert_eq!(mac(&Secrets::open(&directory).expect("read")), first);
        fs::remove_file(&path).expect("removed");
        let other = mac(&Secrets::open(&directory).expect("made anew"));
        assert_ne!(other, first);
        fs::write(&path, b"short").expect("written");
        let error = Secrets::open(&directory).expect_err("cut").to_string();
        assert!(
            error.contains("secret.key") && error.contains("32 bytes"),
            "{error}"
        );
    }
}
