//! One error for the whole client: who erred, whether to retry, what to do.
//!
//! Deliberately absent: retrying. The producer, the consumer and requests retry what is worth it until
//! their deadline; what comes out here has been given up on.

use std::fmt;
use std::time::Duration;

use millstream_protocol::{Code, FrameError, codes, messages};

/// Who or what is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The caller: an argument, a setting, a file. Nothing was sent.
    Usage,
    /// The broker refused; [`Error::code`] says why.
    Refused,
    /// The broker sent something that the protocol does not allow.
    Protocol,
    /// The network, or a broker that is not there.
    Transport,
    /// The deadline passed before the broker answered.
    Deadline,
    /// This client, producer or consumer was closed.
    Closed,
    /// Records that must be there are missing or repeated (see `ConsumerBuilder::verify`).
    Gap,
    /// A batch could not be read, or not be built.
    Batch,
}

/// Why something failed. Cheap to clone, because every record of a failed batch gets it.
#[derive(Clone)]
pub struct Error(std::sync::Arc<Inner>);

struct Inner {
    kind: Kind,
    code: u32,
    message: String,
    hint: String,
    retriable: bool,
    unknown_outcome: bool,
    retry_after: Option<Duration>,
    safe_offset: Option<u64>,
    next_offset: Option<u64>,
    /// The network said that nobody is there.
    absent: bool,
    /// What the connection ended with, when that is the reason.
    lost: Option<quinn::ConnectionError>,
}

/// What a call of this crate gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Who or what is at fault.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The broker's code, when it was the broker that refused and this build knows the code.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        Code::from_number(self.0.code)
    }

    /// A name for logs and scripts: the broker's code, or the kind in capitals.
    #[must_use]
    pub fn name(&self) -> String {
        match self.0.kind {
            Kind::Refused => codes::name_of(self.0.code),
            Kind::Usage => "USAGE".into(),
            Kind::Protocol => "PROTOCOL".into(),
            Kind::Transport => "UNREACHABLE".into(),
            Kind::Deadline => "DEADLINE".into(),
            Kind::Closed => "CLOSED".into(),
            Kind::Gap => "GAP".into(),
            Kind::Batch => "BATCH".into(),
        }
    }

    /// What happened.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do about it; may be empty.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.0.hint
    }

    /// Whether the same call may succeed later without anyone changing anything.
    #[must_use]
    pub fn retriable(&self) -> bool {
        self.0.retriable
    }

    /// Whether what was asked may have been done all the same.
    #[must_use]
    pub fn unknown_outcome(&self) -> bool {
        self.0.unknown_outcome
    }

    /// How long the broker asks to wait before another try.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// With the code `OFFSET_TRUNCATED`: records that were read are lost from this offset on, and nothing
    /// below it is. Seek there to go on.
    #[must_use]
    pub fn safe_offset(&self) -> Option<u64> {
        self.0.safe_offset
    }

    /// Where to go on behind records that cannot be read: of damage on the broker's disk, of a batch whose
    /// records are none, of one that a subscription's filter cannot judge, of those that were removed before
    /// they were read (`RECORDS_LOST`). Its partition has stopped;
    /// [`Consumer::seek`](crate::Consumer::seek) there passes over them, and nothing else does.
    #[must_use]
    pub fn next_offset(&self) -> Option<u64> {
        self.0.next_offset
    }

    fn new(kind: Kind, message: impl Into<String>, hint: &str, retriable: bool) -> Self {
        Self(std::sync::Arc::new(Inner {
            kind,
            code: 0,
            message: message.into(),
            hint: hint.to_owned(),
            retriable,
            unknown_outcome: false,
            retry_after: None,
            safe_offset: None,
            next_offset: None,
            absent: false,
            lost: None,
        }))
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message, "", false)
    }

    pub(crate) fn usage_hint(message: impl Into<String>, hint: &str) -> Self {
        Self::new(Kind::Usage, message, hint, false)
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::new(
            Kind::Protocol,
            message,
            "Check that client and broker are of versions that fit.",
            false,
        )
    }

    pub(crate) fn transport(message: impl Into<String>) -> Self {
        Self::new(
            Kind::Transport,
            message,
            "Check that the broker runs and that its address is right.",
            true,
        )
    }

    /// Nobody is at the broker's address, as the network says: another try may find someone.
    pub(crate) fn absent(message: impl Into<String>) -> Self {
        let mut error = Self::transport(message);
        if let Some(inner) = std::sync::Arc::get_mut(&mut error.0) {
            inner.absent = true;
        }
        error
    }

    /// The first connection did not come to be: where to, and checked against which authority.
    pub(crate) fn refused_by_us(
        lost: quinn::ConnectionError,
        url: &str,
        authority: Option<&str>,
    ) -> Self {
        let authority = authority.unwrap_or("the context");
        let unknown = match &lost {
            quinn::ConnectionError::TransportError(inner) => ["UnknownIssuer", "BadSignature"]
                .into_iter()
                .find(|word| inner.reason.contains(word)),
            _ => None,
        };
        let mut error = Self::from(lost);
        if let Some(word) = unknown
            && let Some(inner) = std::sync::Arc::get_mut(&mut error.0)
        {
            inner.message =
                format!("the certificate of {url} is not of the authority in {authority} ({word})");
        }
        error
    }

    pub(crate) fn is_absent(&self) -> bool {
        self.0.absent
    }

    pub(crate) fn deadline(message: impl Into<String>) -> Self {
        Self::new(
            Kind::Deadline,
            message,
            "Check that the broker is reachable, or allow more time.",
            true,
        )
    }

    pub(crate) fn closed(what: &str) -> Self {
        Self::new(Kind::Closed, format!("the {what} is closed"), "", false)
    }

    pub(crate) fn gap(message: impl Into<String>) -> Self {
        Self::new(
            Kind::Gap,
            message,
            "Compare with `millstream log verify` on the broker.",
            false,
        )
    }

    pub(crate) fn batch(message: impl Into<String>) -> Self {
        Self::new(Kind::Batch, message, "", false)
    }

    /// Records up to `next` cannot be read.
    pub(crate) fn unreadable(message: impl Into<String>, next: u64) -> Self {
        let hint = format!("Seek to offset {next} to go on behind it.");
        let mut error = Self::new(Kind::Batch, message, &hint, false);
        if let Some(inner) = std::sync::Arc::get_mut(&mut error.0) {
            inner.next_offset = Some(next);
        }
        error
    }

    pub(crate) fn batch_hint(message: impl Into<String>, hint: &str) -> Self {
        Self::new(Kind::Batch, message, hint, false)
    }

    pub(crate) fn refused(error: messages::Error) -> Self {
        Self(std::sync::Arc::new(Inner {
            kind: Kind::Refused,
            code: error.code,
            message: error.message,
            hint: match error.next_offset {
                Some(next) => format!("What lies behind begins at offset {next}. {}", error.hint),
                None => error.hint,
            },
            retriable: error.retriable,
            unknown_outcome: error.unknown_outcome,
            retry_after: (error.retry_after_ms > 0)
                .then(|| Duration::from_millis(error.retry_after_ms.into())),
            safe_offset: error.safe_offset,
            next_offset: error.next_offset,
            absent: false,
            lost: None,
        }))
    }

    /// The same error, saying that the request may have been applied.
    pub(crate) fn with_unknown_outcome(&self) -> Self {
        Self(std::sync::Arc::new(Inner {
            kind: self.0.kind,
            code: self.0.code,
            message: format!("{} (it may or may not have been applied)", self.0.message),
            hint: self.0.hint.clone(),
            retriable: self.0.retriable,
            unknown_outcome: true,
            retry_after: self.0.retry_after,
            safe_offset: self.0.safe_offset,
            next_offset: self.0.next_offset,
            absent: self.0.absent,
            lost: self.0.lost.clone(),
        }))
    }

    /// The same error, with what the connection ended with.
    fn caused_by(mut self, lost: quinn::ConnectionError) -> Self {
        if let Some(inner) = std::sync::Arc::get_mut(&mut self.0) {
            inner.lost = Some(lost);
        }
        self
    }

    /// The same error with words before its message.
    pub(crate) fn context(&self, before: &str) -> Self {
        Self(std::sync::Arc::new(Inner {
            kind: self.0.kind,
            code: self.0.code,
            message: format!("{before}: {}", self.0.message),
            hint: self.0.hint.clone(),
            retriable: self.0.retriable,
            unknown_outcome: self.0.unknown_outcome,
            retry_after: self.0.retry_after,
            safe_offset: self.0.safe_offset,
            next_offset: self.0.next_offset,
            absent: self.0.absent,
            lost: self.0.lost.clone(),
        }))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if self.0.kind == Kind::Refused {
            write!(f, " [{}]", self.name())?;
        }
        if !self.0.hint.is_empty() {
            write!(f, ". {}", self.0.hint)?;
        }
        Ok(())
    }
}

/// What `?` in `main`, `unwrap` and `expect` print: for people too, with the hint.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.kind != Kind::Refused {
            write!(f, "{}: ", self.name())?;
        }
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    /// A `quinn::ConnectionError`, when the end of a connection is the reason.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.lost.as_ref().map(|lost| lost as _)
    }
}

impl From<quinn::ConnectionError> for Error {
    fn from(error: quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as C;
        let cause = error.clone();
        let error = match error {
            C::ApplicationClosed(ref close) => {
                let number = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                match Code::from_number(number) {
                    Some(code) => Self::refused(code.error(if reason.is_empty() {
                        "the broker closed the connection".to_owned()
                    } else {
                        reason
                    })),
                    None => Self::transport("the broker closed the connection"),
                }
            }
            C::LocallyClosed => Self::closed("connection"),
            C::VersionMismatch => Self::protocol("the broker does not speak this version of QUIC"),
            // TLS alerts say that waiting will not help.
            C::TransportError(ref inner) if alert(inner.code).is_some() => Self::new(
                Kind::Transport,
                format!("no TLS connection with the broker: {inner}"),
                certificate_hint(&inner.reason),
                false,
            ),
            C::TransportError(ref inner) => {
                Self::transport(format!("the connection failed: {inner}"))
            }
            C::ConnectionClosed(ref close) => match alert(close.error_code) {
                Some(alert) => Self::new(
                    Kind::Transport,
                    format!("the broker refused the TLS connection: {alert}"),
                    "Check the client certificate (cert_file, --client-cert): it must be in date and signed by an authority of the broker's tls.client_ca. The broker's log says more.",
                    false,
                ),
                None => Self::transport(format!("the connection failed: {cause}")),
            },
            C::TimedOut => Self::transport("the broker does not answer"),
            C::Reset => Self::transport("the broker was restarted"),
            other => Self::transport(format!("the connection failed: {other}")),
        };
        error.caused_by(cause)
    }
}

/// What to do about a certificate of the broker's that was found wanting, by the words of the TLS library.
fn certificate_hint(reason: &str) -> &'static str {
    if reason.contains("not valid for name") {
        "Connect by a name or address that the certificate has, or say which one to look for: server_name in a context."
    } else if reason.contains("certificate expired") || reason.contains("not valid yet") {
        "Check this machine's clock; if it is right, the broker needs a new certificate."
    } else {
        "Give the authority that signed the broker's certificate: --ca FILE, ca_file in a context. A broker that made its own writes it into DIR/context.toml in its data directory, and a new one when it makes a new authority."
    }
}

/// What the TLS alert in a QUIC error code says (RFC 8446, 6; RFC 9001, 4.8), if it carries one.
fn alert(code: quinn::TransportErrorCode) -> Option<String> {
    let number = u64::from(code)
        .checked_sub(0x100)
        .filter(|alert| *alert < 0x100)?;
    Some(match number {
        40 => "the two have no TLS settings in common".to_owned(),
        42 | 43 => "the client certificate is bad".to_owned(),
        44 => "the client certificate was revoked".to_owned(),
        45 => "the client certificate has expired, or does not hold yet".to_owned(),
        46 => "the client certificate cannot be used".to_owned(),
        48 => "it does not know the authority of the client certificate".to_owned(),
        51 => "the client does not have the key of its certificate".to_owned(),
        116 => "it asks for a client certificate".to_owned(),
        120 => "it does not speak millstream/1".to_owned(),
        number => format!("TLS alert {number}"),
    })
}

impl From<quinn::WriteError> for Error {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::ConnectionLost(lost) => lost.into(),
            quinn::WriteError::Stopped(code) => stopped(code),
            other => Self::transport(format!("writing failed: {other}")),
        }
    }
}

impl From<quinn::ReadError> for Error {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::ConnectionLost(lost) => lost.into(),
            quinn::ReadError::Reset(code) => stopped(code),
            other => Self::transport(format!("reading failed: {other}")),
        }
    }
}

impl From<FrameError> for Error {
    fn from(error: FrameError) -> Self {
        Self::protocol(format!("the broker's answer cannot be read: {error}"))
    }
}

fn stopped(code: quinn::VarInt) -> Error {
    match u32::try_from(code.into_inner())
        .ok()
        .and_then(Code::from_number)
    {
        Some(code) => Error::refused(code.error("the broker stopped this stream")),
        None => Error::transport("the broker stopped this stream"),
    }
}

#[cfg(test)]
mod tests {
    use quinn::TransportErrorCode;

    use super::*;

    #[test]
    fn a_refusal_keeps_what_the_broker_said() {
        let mut wire = Code::Busy.error("shard 1 is busy");
        wire.retry_after_ms = 20;
        let error = Error::refused(wire);
        assert_eq!(
            (error.kind(), error.code()),
            (Kind::Refused, Some(Code::Busy))
        );
        assert!(error.retriable() && !error.unknown_outcome());
        assert_eq!(error.retry_after(), Some(Duration::from_millis(20)));
        assert_eq!(
            error.to_string(),
            format!("shard 1 is busy [BUSY]. {}", Code::Busy.hint())
        );
    }

    #[test]
    fn a_refused_certificate_is_final() {
        let closed = |error_code| {
            let close = quinn::ConnectionClose {
                error_code,
                frame_type: None,
                reason: bytes::Bytes::new(),
            };
            Error::from(quinn::ConnectionError::ConnectionClosed(close))
        };
        let unknown_authority = closed(TransportErrorCode::crypto(48));
        assert!(!unknown_authority.retriable(), "{unknown_authority}");
        assert!(unknown_authority.message().contains("authority"));
        assert!(closed(TransportErrorCode::CONNECTION_REFUSED).retriable());
    }

    #[test]
    fn a_code_of_a_newer_broker_is_still_an_error() {
        let error = Error::refused(messages::Error {
            code: 9999,
            message: "new".into(),
            ..Default::default()
        });
        assert_eq!((error.code(), error.name().as_str()), (None, "code 9999"));
    }

    /// What `?` in `main` prints is the Debug form.
    #[test]
    fn every_print_of_an_error_says_what_to_do() {
        let wire = Code::UnknownTopic.error("there is no topic `t`");
        for error in [
            Error::refused(wire),
            Error::transport("the broker does not answer").context("orders/0"),
            Error::deadline("late").with_unknown_outcome(),
            Error::usage_hint("wrong", "Do it right."),
        ] {
            for text in [error.to_string(), format!("{error:?}")] {
                assert!(
                    text.contains(error.message())
                        && text.contains(&error.name())
                            == (text != error.to_string() || error.kind() == Kind::Refused)
                        && text.ends_with(error.hint())
                        && !error.hint().is_empty(),
                    "{text}"
                );
            }
        }
    }
}
