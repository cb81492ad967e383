//! Keeps records whose JSON value satisfies an expression.
//!
//! | parameter    | meaning                                                                     |
//! |--------------|-----------------------------------------------------------------------------|
//! | `expr`       | the expression, see [`expr`]; required                                      |
//! | `on_invalid` | what becomes of a value that is not JSON: `error` (the default) leaves the record to the deployment's `on_error`, `drop` and `keep` do so here |
//!
//! A record without a value (a tombstone) is taken as JSON `null`: every path is absent in it. The value
//! must be one JSON text (RFC 8259) in UTF-8, nested at most 128 deep, and is checked to its end.
//!
//! A value is scanned once, front to back, and only the fields that the expression names are looked
//! at: see [`scan`]. Nothing is allocated for a record unless a compared string has escapes.

pub mod expr;
mod glob;
mod number;
pub mod scan;
mod string;

use millstream_plugin::{Filter, Parameters, Record};

use crate::expr::Expression;
use crate::scan::Scanner;

/// The filter.
#[derive(Debug)]
pub struct JsonFilter {
    expression: Expression,
    scanner: Scanner,
    on_invalid: OnInvalid,
}

/// What becomes of a value that is not JSON.
#[derive(Clone, Copy, Debug)]
enum OnInvalid {
    Keep,
    Drop,
    Error,
}

impl Filter for JsonFilter {
    fn start(parameters: &Parameters) -> Result<Self, String> {
        parameters.only(&["expr", "on_invalid"])?;
        let expression = Expression::parse(parameters.require("expr")?)
            .map_err(|error| format!("the parameter `expr` is wrong: {error}"))?;
        let on_invalid = match parameters.get("on_invalid") {
            None | Some("error") => OnInvalid::Error,
            Some("keep") => OnInvalid::Keep,
            Some("drop") => OnInvalid::Drop,
            Some(other) => {
                return Err(format!(
                    "`on_invalid` is `keep`, `drop` or `error`, not `{other}`"
                ));
            }
        };
        Ok(Self {
            scanner: Scanner::new(expression.paths()),
            expression,
            on_invalid,
        })
    }

    fn keep(&mut self, record: &Record<'_>) -> Result<bool, String> {
        let value = record.value().unwrap_or(b"null");
        match (self.scanner.scan(value), self.on_invalid) {
            (Ok(found), _) => Ok(self.expression.holds(&found)),
            (Err(_), OnInvalid::Keep) => Ok(true),
            (Err(_), OnInvalid::Drop) => Ok(false),
            (Err(invalid), OnInvalid::Error) => Err(format!("the value is not JSON: {invalid}")),
        }
    }
}

millstream_plugin::filter!(JsonFilter);

#[cfg(test)]
mod tests;
