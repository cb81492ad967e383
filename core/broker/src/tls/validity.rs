//! From when until when a certificate holds, and what to say of that.
//!
//! Reads as much of a certificate as that takes (RFC 5280, 4.1): the two times. Whether a client takes it
//! is the client's to check.

use rustls_pki_types::CertificateDer;

const DAY_S: i64 = 24 * 3600;
/// A certificate that ends within this time is warned of; a shorter-lived one in its last third.
const WARN_BEFORE_S: i64 = 30 * DAY_S;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When a chain of certificates holds, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before_s: i64,
    pub(crate) not_after_s: i64,
}

impl Validity {
    /// When all certificates of a chain hold; `None` when that cannot be read.
    pub(crate) fn of_chain(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let mut all = chain.iter().map(|certificate| of_certificate(certificate));
        let first = all.next()??;
        all.try_fold(first, |one, other| {
            let other = other?;
            Some(Self {
                not_before_s: one.not_before_s.max(other.not_before_s),
                not_after_s: one.not_after_s.min(other.not_after_s),
            })
        })
    }

    /// What an operator has to hear of it, if anything.
    pub(crate) fn warning(self, now_s: i64) -> Option<String> {
        let left_s = self.not_after_s - now_s;
        let warn_s = WARN_BEFORE_S.min((self.not_after_s - self.not_before_s) / 3);
        if left_s <= 0 {
            Some(format!("expired {} ago: clients refuse it", span(-left_s)))
        } else if now_s < self.not_before_s {
            let early = span(self.not_before_s - now_s);
            Some(format!(
                "holds only in {early}: clients refuse it (or is the clock wrong?)"
            ))
        } else if left_s <= warn_s {
            Some(format!("expires in {}", span(left_s)))
        } else {
            None
        }
    }
}

/// A time for people, in whole days or hours.
pub(crate) fn span(seconds: i64) -> String {
    match (seconds / DAY_S, seconds / 3600) {
        (0, 1) => "1 hour".to_owned(),
        (0, hours) => format!("{hours} hours"),
        (1, _) => "1 day".to_owned(),
        (days, _) => format!("{days} days"),
    }
}

fn of_certificate(der: &[u8]) -> Option<Validity> {
    let (certificate, _) = element(der, SEQUENCE)?;
    let (body, _) = element(certificate, SEQUENCE)?;
    let mut rest = element(body, VERSION).map_or(body, |(_, rest)| rest);
    for _ in ["serial number", "signature", "issuer"] {
        rest = any(rest)?.2;
    }
    let (times, _) = element(rest, SEQUENCE)?;
    let (tag, not_before, rest) = any(times)?;
    let not_before_s = time(tag, not_before)?;
    let (tag, not_after, _) = any(rest)?;
    Some(Validity {
        not_before_s,
        not_after_s: time(tag, not_after)?,
    })
}

/// The content of the first element, which must have this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    any(der)
        .filter(|(found, ..)| *found == tag)
        .map(|(_, content, rest)| (content, rest))
}

/// Tag and content of the first element, and what follows it (X.690, 8.1).
fn any(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits
                .iter()
                .fold(0, |all, &byte| all << 8 | usize::from(byte));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280, 4.1.2.5) in seconds since 1970.
fn time(tag: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| {
        let digit = |all: i64, byte: &u8| all * 10 + i64::from(byte - b'0');
        digits.iter().fold(0, digit)
    };
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let two = number(&digits[..2]);
            (two + if two < 50 { 2000 } else { 1900 }, &digits[2..])
        }
        (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let mut parts = rest.chunks(2).map(number);
    let mut part =
        |range: std::ops::RangeInclusive<i64>| parts.next().filter(|part| range.contains(part));
    let (month, day) = (part(1..=12)?, part(1..=31)?);
    let (hour, minute, second) = (part(0..=23)?, part(0..=59)?, part(0..=60)?);
    Some(days(year, month, day) * DAY_S + hour * 3600 + minute * 60 + second)
}

/// Days since 1970 of a date of the Gregorian calendar, with the year counted from March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let leaps = year / 4 - year / 100 + year / 400;
    year * 365 + leaps + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_a_certificate_are_read() {
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2024, 2, 29);
        params.not_after = rcgen::date_time_ymd(2051, 12, 31);
        let key = rcgen::KeyPair::generate().expect("a key");
        let long = params.self_signed(&key).expect("made");
        params.not_after = rcgen::date_time_ymd(2025, 3, 1);
        let short = params.self_signed(&key).expect("made");
        let expected = Validity {
            not_before_s: 1_709_164_800,
            not_after_s: 2_587_593_600,
        };
        let one = |certificate: &rcgen::Certificate| certificate.der().clone();
        assert_eq!(Validity::of_chain(&[one(&long)]), Some(expected));
        let both = Validity::of_chain(&[one(&long), one(&short)]).expect("read");
        assert_eq!(
            both.not_after_s, 1_740_787_200,
            "the chain ends with its first"
        );
        let der = one(&long);
        for length in 0..der.len().min(200) {
            let cut = CertificateDer::from(der[..length].to_vec());
            assert_eq!(Validity::of_chain(&[cut]), None);
        }
        assert_eq!(Validity::of_chain(&[]), None);
    }

    #[test]
    fn an_end_is_warned_of_in_time() {
        let lives = |days: i64| Validity {
            not_before_s: 0,
            not_after_s: days * DAY_S,
        };
        let at = |validity: Validity, day: i64| validity.warning(day * DAY_S).unwrap_or_default();
        assert_eq!(at(lives(365), 334), "");
        assert_eq!(at(lives(365), 335), "expires in 30 days");
        assert_eq!(at(lives(9), 5), "");
        assert_eq!(at(lives(9), 6), "expires in 3 days");
        assert!(at(lives(9), 9).starts_with("expired"));
        assert!(at(lives(9), -1).starts_with("holds only in 1 day"));
    }
}
