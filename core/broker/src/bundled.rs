//! Components that the binary brings along: deployed by name, and of use to subscriptions without that.
//! Deliberately absent: compiling them (`components`).

use std::sync::LazyLock;

use sha2::{Digest as _, Sha256};

/// A component that the binary brings along.
#[derive(Clone, Copy, Debug)]
pub struct Bundled {
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    pub wasm: &'static [u8],
}

/// All of them, by name.
pub const BUNDLED: [Bundled; 2] = [
    Bundled {
        name: "json-filter",
        about: "keeps records whose JSON value satisfies an expression (parameter expr)",
        wasm: include_bytes!("../../../plugins/dist/json-filter.wasm"),
    },
    Bundled {
        name: "key-filter",
        about: "keeps records whose key begins with one of some texts (parameter prefix)",
        wasm: include_bytes!("../../../plugins/dist/key-filter.wasm"),
    },
];

static DIGESTS: LazyLock<[[u8; 32]; BUNDLED.len()]> =
    LazyLock::new(|| BUNDLED.map(|bundled| Sha256::digest(bundled.wasm).into()));

/// The one of this name.
#[must_use]
pub fn bundled(name: &str) -> Option<Bundled> {
    BUNDLED.into_iter().find(|bundled| bundled.name == name)
}

/// The digest of the one of this name.
pub(crate) fn digest(name: &str) -> Option<[u8; 32]> {
    let at = BUNDLED.iter().position(|bundled| bundled.name == name)?;
    Some(DIGESTS[at])
}

pub(crate) fn by_digest(digest: &[u8; 32]) -> Option<&'static [u8]> {
    let at = DIGESTS.iter().position(|known| known == digest)?;
    Some(BUNDLED[at].wasm)
}
