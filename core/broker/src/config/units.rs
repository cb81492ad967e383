//! Settings that are times or sizes, written with a unit: `"5d"`, `"64MiB"`.

use millstream_batch::units::{bytes, milliseconds};

/// Turn the texts of settings that are times or sizes, as their names say, into numbers. Gives whether
/// there were any.
pub(super) fn resolve(table: &mut toml::Table) -> Result<bool, String> {
    resolve_in(table, "")
}

fn resolve_in(table: &mut toml::Table, section: &str) -> Result<bool, String> {
    let mut any = false;
    for (name, value) in table.iter_mut() {
        let path = format!("{section}{name}");
        match value {
            toml::Value::Table(inner) => any |= resolve_in(inner, &format!("{path}."))?,
            toml::Value::String(text) => {
                let (number, example) = match kind(name) {
                    Some(Kind::Time) => (milliseconds(text), "a time: 250 (milliseconds), 90s, 5d"),
                    Some(Kind::Size) => (bytes(text), "a size: 4096 (bytes), 64k, 2GiB"),
                    None => continue,
                };
                let number = match text.trim() {
                    "-1" => Some(-1), // where a setting may be without a bound
                    _ => number.and_then(|number| i64::try_from(number).ok()),
                };
                let number =
                    number.ok_or_else(|| format!("setting `{path}`: `{text}` is not {example}"))?;
                *value = toml::Value::Integer(number);
                any = true;
            }
            _ => {}
        }
    }
    Ok(any)
}

enum Kind {
    Time,
    Size,
}

/// What a setting's name says: `…_ms`, `…_bytes`, also before a `_max`.
fn kind(name: &str) -> Option<Kind> {
    let name = name.strip_suffix("_max").unwrap_or(name);
    match name.rsplit_once('_')?.1 {
        "ms" => Some(Kind::Time),
        "bytes" => Some(Kind::Size),
        _ => None,
    }
}
