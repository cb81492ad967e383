//! Results on stdout: tables for people, JSON for programs.
//!
//! Deliberately absent: progress and errors, which go to stderr.

use std::io::{self, Write};

use serde_json::Value;

use crate::exit::Outcome;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: JSON, one object a line. A list is a line for each of its entries, and none when empty.
    Json,
    /// Of records (`sub`): the value's bytes as they are.
    Raw,
    /// Of records: the value in hexadecimal.
    Hex,
    /// Of records: the value in base64.
    Base64,
}

impl Output {
    pub(crate) fn is_json(self) -> bool {
        self == Self::Json
    }

    /// Whether it prints the values of records and nothing else: what has no records cannot be printed so.
    pub(crate) fn is_of_values(self) -> bool {
        matches!(self, Self::Raw | Self::Hex | Self::Base64)
    }

    /// One result: `text` for people, `json` for programs.
    pub(crate) fn show(self, text: impl AsRef<str>, json: &Value) -> Outcome {
        match self {
            Self::Json => line(&json.to_string()),
            // Commands without values were refused.
            Self::Text | Self::Raw | Self::Hex | Self::Base64 => line(text.as_ref()),
        }
    }
}

impl Output {
    /// A list: `text` for people, for programs a line of JSON for each entry.
    pub(crate) fn list(
        self,
        text: impl AsRef<str>,
        entries: impl IntoIterator<Item = Value>,
    ) -> Outcome {
        if !self.is_json() {
            return line(text.as_ref());
        }
        let mut stdout = io::stdout().lock();
        for entry in entries {
            writeln!(stdout, "{entry}")?;
        }
        Ok(stdout.flush()?)
    }
}

/// One line on stdout.
pub(crate) fn line(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()?;
    Ok(())
}

/// One line on stderr, for people.
pub(crate) fn note(text: &str) {
    // A closed stderr must not stop the work.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A table with aligned columns. Columns that hold only numbers are aligned to the right.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(heads: [&str; N]) -> Self {
        Self {
            rows: vec![heads.iter().map(|&head| head.to_owned()).collect()],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let is_number = |cell: &String| {
            cell == "-"
                || (!cell.is_empty()
                    && cell
                        .chars()
                        .all(|c| c.is_ascii_digit() || matches!(c, '.' | ',')))
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let right: Vec<_> = (0..columns)
            .map(|column| {
                self.rows.len() > 1 && self.rows[1..].iter().all(|row| is_number(&row[column]))
            })
            .collect();
        for row in &self.rows {
            let mut text = String::new();
            for (column, cell) in row.iter().enumerate() {
                // By hand: a width in a format has a limit.
                let gap = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
                if column > 0 {
                    text.push_str("  ");
                }
                if right[column] {
                    text.push_str(&gap);
                    text.push_str(cell);
                } else {
                    text.push_str(cell);
                    text.push_str(&gap);
                }
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// A count with thousands separated, for people.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The partitions of a topic that has so many, for people.
pub(crate) fn partitions(count: u32) -> String {
    match count {
        1 => "partition 0 alone".to_owned(),
        count => format!("partitions 0 to {}", count.saturating_sub(1)),
    }
}

/// Bytes with a unit, for people.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{number} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Bytes as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
    out
}

/// Sixteen bytes as a UUID; anything else as hexadecimal.
pub(crate) fn uuid(bytes: &[u8]) -> String {
    let digits = hex(bytes);
    if bytes.len() != 16 {
        return digits;
    }
    [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ]
    .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_words_left() {
        let mut table = Table::new(["NAME", "PARTITIONS"]);
        table.row(["a".into(), "1".into()]);
        table.row(["longer".into(), "12".into()]);
        assert_eq!(
            table.to_string(),
            "NAME    PARTITIONS\na                1\nlonger          12\n"
        );
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(partitions(1), "partition 0 alone");
        assert_eq!(partitions(4), "partitions 0 to 3");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(uuid(&[0xab; 16]), "abababab-abab-abab-abab-abababababab");
    }
}
