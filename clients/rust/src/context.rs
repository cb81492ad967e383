//! The context file: where a broker is and how to prove who we are.
//!
//! ```toml
//! url = "millstream://127.0.0.1:7411"
//! ca_pem = """-----BEGIN CERTIFICATE----- …"""   # or ca_file = "ca.pem"
//! cert_file = "client.pem"                       # mTLS; or cert_pem / key_pem inline
//! key_file = "client.key"
//! token = "…"                                    # bearer token, where the broker asks for one
//! server_name = "localhost"                      # when the certificate names another host
//! ```
//!
//! A broker in `dev`, or on a loopback address without principals, writes this file to
//! `DIR/context.toml`. Relative paths are relative to the file. Deliberately absent: where a context is
//! looked for ([`locate`]), reading certificates and connecting.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::contexts::locate;
use crate::error::Error;

/// Environment variable that names a context file.
pub const CONTEXT_VARIABLE: &str = "MILLSTREAM_CONTEXT";
/// Environment variable with a bearer token, used instead of the context's.
pub const TOKEN_VARIABLE: &str = "MILLSTREAM_TOKEN";
/// Where `millstream dev` keeps its data, and so its context, below the working directory.
pub const DEV_DIRECTORY: &str = ".millstream";
/// Name of the context file in a data directory.
pub const CONTEXT_FILE: &str = "context.toml";
/// Port of a URL that names none.
pub const DEFAULT_PORT: u16 = 7411;

/// Where a broker is and how to prove who we are.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `millstream://host:port`.
    pub url: String,
    /// Certificate authority that signed the broker's certificate, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// The same as a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Client certificate chain, as PEM (mTLS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_pem: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Private key of the client certificate, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_pem: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Name to look for in the broker's certificate, instead of the URL's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Where the certificates and keys above were read, for messages.
    #[serde(skip)]
    pub origins: Origins,
}

/// Where certificates and keys of a context were read: words that an error names them by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    /// Of `ca_pem`.
    pub ca: Option<String>,
    /// Of `cert_pem`.
    pub cert: Option<String>,
    /// Of `key_pem`.
    pub key: Option<String>,
}

impl Context {
    /// A context of a URL alone. The system has no certificate for a private broker, so most
    /// brokers need a `ca_pem` or `ca_file` beside it.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ..Self::default()
        }
    }

    /// Read a context file and the files that it names.
    ///
    /// # Errors
    /// When a file cannot be read, is not TOML of this shape, or the URL cannot be used.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let text = read(path, "context file")?;
        let mut context = Self::parse(&text).map_err(|error| {
            Error::usage(format!(
                "context file {}: {}",
                path.display(),
                error.message()
            ))
        })?;
        context.inline(path)?;
        Ok(context)
    }

    /// Read a context from TOML text. Files that it names are not opened.
    ///
    /// # Errors
    /// When the text is not TOML of this shape or the URL cannot be used.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let context: Self =
            toml::from_str(text).map_err(|error| Error::usage(error.to_string().trim_end()))?;
        context.address()?;
        Ok(context)
    }

    /// The context that [`locate`] finds, with the token of [`TOKEN_VARIABLE`] if that is set.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn find(explicit: Option<&Path>) -> Result<Self, Error> {
        let mut context = Self::load(locate(explicit)?)?;
        if let Ok(token) = std::env::var(TOKEN_VARIABLE)
            && !token.is_empty()
        {
            context.token = Some(token);
        }
        Ok(context)
    }

    /// The context as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// Host and port of the URL.
    ///
    /// # Errors
    /// When the URL is not `millstream://host[:port]`.
    pub fn address(&self) -> Result<(String, u16), Error> {
        let bad = |why: &str| {
            Error::usage_hint(
                format!("`{}` is not a broker's URL: {why}", self.url),
                "Write it as millstream://host:port, for example millstream://127.0.0.1:7411.",
            )
        };
        let rest = match self.url.split_once("://") {
            Some(("millstream" | "quic", rest)) => rest,
            Some(_) => return Err(bad("unknown scheme")),
            None => &self.url,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(bad("nothing may follow the port"));
        }
        let (host, port) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (host, tail) = inner
                    .split_once(']')
                    .ok_or_else(|| bad("`[` without `]`"))?;
                (
                    host,
                    tail.strip_prefix(':')
                        .or((!tail.is_empty()).then_some(tail)),
                )
            }
            None => match rest.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        if host.is_empty() {
            return Err(bad("no host"));
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port
                .parse()
                .map_err(|_| bad("the port is not a number up to 65535"))?,
        };
        Ok((host.to_owned(), port))
    }

    /// Whether certificates and keys are such that a connection can be tried: what connecting would say of them.
    ///
    /// # Errors
    /// When there is no authority, or something cannot be read as what it is for.
    pub fn check(&self) -> Result<(), Error> {
        crate::transport::client_config(self, crate::transport::IDLE_TIMEOUT).map(drop)
    }

    /// Read the files that the context in the file `context` names.
    fn inline(&mut self, context: &Path) -> Result<(), Error> {
        let directory = context.parent().unwrap_or(Path::new("."));
        let fill = |text: &mut Option<String>,
                    file: &mut Option<PathBuf>,
                    origin: &mut Option<String>,
                    what: &str| {
            let from = match file.take() {
                Some(_) if text.is_some() => {
                    return Err(Error::usage(format!(
                        "context file {}: it gives {what} both inline and as a file: keep one",
                        context.display()
                    )));
                }
                Some(file) => {
                    let file = directory.join(file);
                    *text = Some(read(&file, what)?);
                    file
                }
                None => context.to_owned(),
            };
            if text.is_some() {
                *origin = Some(from.display().to_string());
            }
            Ok(())
        };
        let origins = &mut self.origins;
        fill(
            &mut self.ca_pem,
            &mut self.ca_file,
            &mut origins.ca,
            "the CA",
        )?;
        fill(
            &mut self.cert_pem,
            &mut self.cert_file,
            &mut origins.cert,
            "the client certificate",
        )?;
        fill(
            &mut self.key_pem,
            &mut self.key_file,
            &mut origins.key,
            "the client key",
        )
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("url", &self.url)
            .field("server_name", &self.server_name)
            .field("ca", &self.ca_pem.is_some())
            .field("client_certificate", &self.cert_pem.is_some())
            .field("token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

fn read(path: &Path, what: &str) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| {
        Error::usage_hint(
            format!("{what} {} cannot be read: {error}", path.display()),
            "Check the path; a broker's context is DIR/context.toml in its data directory.",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Option<(String, u16)> {
        Context::new(url).address().ok()
    }

    #[test]
    fn urls() {
        assert_eq!(
            address("millstream://127.0.0.1:9000"),
            Some(("127.0.0.1".into(), 9000))
        );
        assert_eq!(
            address("millstream://broker.example/"),
            Some(("broker.example".into(), DEFAULT_PORT))
        );
        assert_eq!(address("localhost:1"), Some(("localhost".into(), 1)));
        assert_eq!(
            address("millstream://[::1]:9000"),
            Some(("::1".into(), 9000))
        );
        assert_eq!(
            address("millstream://[::1]"),
            Some(("::1".into(), DEFAULT_PORT))
        );
        for bad in [
            "http://x:1",
            "millstream://",
            "millstream://:9",
            "millstream://a:70000",
            "millstream://a:1/x",
            "[::1",
            "",
        ] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_context_reads_back_what_it_writes() {
        let context = Context {
            ca_pem: Some("PEM\n".into()),
            token: Some("t".into()),
            ..Context::new("millstream://a:1")
        };
        assert_eq!(Context::parse(&context.to_toml()).unwrap(), context);
    }

    #[test]
    fn an_unknown_key_is_an_error_and_a_token_is_never_shown() {
        let error = Context::parse("url = \"millstream://a:1\"\ntokn = \"x\"\n").unwrap_err();
        assert!(error.message().contains("tokn"), "{error}");
        let context = Context {
            token: Some("secret".into()),
            ..Context::new("millstream://a:1")
        };
        assert!(!format!("{context:?}").contains("secret"));
    }

    #[test]
    fn files_are_relative_to_the_context() {
        let directory =
            std::env::temp_dir().join(format!("millstream-context-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("ca.pem"), "the CA").unwrap();
        let path = directory.join("context.toml");
        std::fs::write(&path, "url = \"millstream://a:1\"\nca_file = \"ca.pem\"\n").unwrap();
        let context = Context::load(&path).unwrap();
        assert_eq!(context.ca_pem.as_deref(), Some("the CA"));
        let ca = directory.join("ca.pem").display().to_string();
        assert_eq!(context.origins.ca, Some(ca), "errors name the file");
        assert_eq!(context.origins.key, None);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
