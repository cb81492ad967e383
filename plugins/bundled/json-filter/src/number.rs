//! JSON numbers, compared. Whole numbers of up to 38 digits compare exactly, others as 64-bit floats.
//! Deliberately absent: arithmetic.

use std::cmp::Ordering;

/// A number as written in JSON, which has been checked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    pub(crate) fn of(digits: &[u8]) -> Self {
        // Short whole numbers, which most are, without the general parser.
        let (negative, unsigned) = match digits {
            [b'-', rest @ ..] => (true, rest),
            _ => (false, digits),
        };
        if unsigned.len() <= 18 && unsigned.iter().all(u8::is_ascii_digit) {
            let n = unsigned
                .iter()
                .fold(0_i64, |n, d| n * 10 + i64::from(d - b'0'));
            return Self::Whole(i128::from(if negative { -n } else { n }));
        }
        let text = str::from_utf8(digits).unwrap_or("NaN"); // it is ASCII
        match text.parse::<i128>() {
            Ok(whole) => Self::Whole(whole),
            Err(_) => Self::Float(text.parse().unwrap_or(f64::NAN)),
        }
    }

    /// None only if one is no number, which JSON cannot say.
    pub(crate) fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Some(a.cmp(&b)),
            (a, b) => a.float().partial_cmp(&b.float()),
        }
    }

    fn float(self) -> f64 {
        match self {
            Self::Whole(n) => n as f64,
            Self::Float(f) => f,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_exact_and_floats_are_floats() {
        let compare = |a: &str, b: &str| Number::of(a.as_bytes()).compare(Number::of(b.as_bytes()));
        // Beyond 2^53 a float could not tell these apart.
        assert_eq!(
            compare("9007199254740993", "9007199254740992"),
            Some(Ordering::Greater)
        );
        assert_eq!(
            compare("-9007199254740993", "-9007199254740992"),
            Some(Ordering::Less)
        );
        assert_eq!(
            compare("18446744073709551617", "18446744073709551616"),
            Some(Ordering::Greater)
        );
        assert_eq!(compare("100", "1e2"), Some(Ordering::Equal));
        assert_eq!(compare("0.1", "0.10"), Some(Ordering::Equal));
        assert_eq!(compare("-0", "0"), Some(Ordering::Equal));
        assert_eq!(compare("1e400", "1"), Some(Ordering::Greater));
    }
}
