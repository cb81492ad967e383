//! The expression language.
//!
//! ```text
//! or         = and { "||" and }
//! and        = not { "&&" not }
//! not        = "!" not | comparison
//! comparison = operand [ ( "==" | "!=" | "<" | "<=" | ">" | ">=" | "contains" | "matches" ) operand ]
//! operand    = path | string | number | "true" | "false" | "null"
//!            | "exists" "(" path ")" | "(" or ")"
//! path       = name { "." name }          name = letters, digits, _ - @ $, or a string in backquotes
//! string     = '…' or "…", in which \ takes the next character as it is
//! ```
//!
//! - A path leads from the record's value through objects; a part that is a number also selects from an
//!   array: `items.0.price`. A name that is also a word of the language, or has other characters, goes in
//!   backquotes: `` `exists`.`a.b` ``.
//! - Values of different types are never equal and have no order. An absent value equals nothing but
//!   `null`; `exists(path)` tells absent from null.
//! - Strings compare by their bytes; whole numbers exactly, others as 64-bit floats.
//! - `a contains 'x'`: the text `a` has `x` somewhere, or the array `a` has the element `'x'` (of any type).
//! - `a matches 'x*'`: all of the text `a` fits the pattern, where `*` stands for any text.
//! - A path alone means `path == true`.
//!
//! Deliberately absent: arithmetic, regular expressions, variables.

use std::cmp::Ordering;
use std::fmt;

use crate::number::Number;
use crate::scan::{Found, Value, elements};
use crate::{glob, string};

/// Parentheses and negations inside one another.
const DEPTH_MAX: usize = 64;
/// Bytes of an expression.
const BYTES_MAX: usize = 16 << 10;

/// An expression, and the paths that it reads.
#[derive(Debug)]
pub struct Expression {
    root: Node,
    paths: Vec<Vec<String>>,
}

#[derive(Debug)]
enum Node {
    Or(Vec<Node>),
    And(Vec<Node>),
    Not(Box<Node>),
    Compare(Operand, Comparison, Operand),
    Exists(usize),
}

#[derive(Debug)]
enum Operand {
    Path(usize),
    Text(Vec<u8>),
    Number(Number),
    Bool(bool),
    Null,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Contains,
    Matches,
}

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Byte position.
    pub at: usize,
    /// What was expected.
    pub what: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at character {}", self.what, self.at + 1)
    }
}

impl Expression {
    /// Reads an expression.
    pub fn parse(source: &str) -> Result<Self, Error> {
        if source.len() > BYTES_MAX {
            let what = format!("an expression has at most {BYTES_MAX} bytes: this ends");
            return Err(Error {
                at: BYTES_MAX,
                what,
            });
        }
        let mut parser = Parser {
            source,
            at: 0,
            token_at: 0,
            token: Token::End,
            paths: Vec::new(),
        };
        parser.advance()?;
        let root = parser.or(0)?;
        if parser.token != Token::End {
            return Err(parser.expected("an operator or the end"));
        }
        Ok(Self {
            root,
            paths: parser.paths,
        })
    }

    /// The paths whose values [`holds`](Self::holds) needs.
    #[must_use]
    pub fn paths(&self) -> &[Vec<String>] {
        &self.paths
    }

    /// Whether the expression is true of these values.
    #[must_use]
    pub fn holds(&self, found: &Found<'_>) -> bool {
        self.root.holds(found)
    }
}

impl Node {
    fn holds(&self, found: &Found<'_>) -> bool {
        match self {
            Self::Or(any) => any.iter().any(|node| node.holds(found)),
            Self::And(all) => all.iter().all(|node| node.holds(found)),
            Self::Not(node) => !node.holds(found),
            Self::Exists(path) => found.value(*path) != Value::Absent,
            Self::Compare(left, comparison, right) => {
                compare(&left.side(found), *comparison, &right.side(found))
            }
        }
    }
}

/// One side of a comparison: a value of the record or of the expression.
#[derive(Clone, Copy, Debug)]
enum Side<'a> {
    Record(Value<'a>),
    Text(&'a [u8]),
    Number(Number),
}

impl Operand {
    fn side<'a>(&'a self, found: &Found<'a>) -> Side<'a> {
        match self {
            Self::Path(path) => Side::Record(found.value(*path)),
            Self::Text(text) => Side::Text(text),
            Self::Number(number) => Side::Number(*number),
            Self::Bool(bool) => Side::Record(Value::Bool(*bool)),
            Self::Null => Side::Record(Value::Null),
        }
    }
}

fn compare(left: &Side<'_>, comparison: Comparison, right: &Side<'_>) -> bool {
    match comparison {
        Comparison::Equal => equal(left, right),
        Comparison::NotEqual => !equal(left, right),
        Comparison::Less => order(left, right) == Some(Ordering::Less),
        Comparison::Greater => order(left, right) == Some(Ordering::Greater),
        Comparison::LessOrEqual => order(left, right).is_some_and(Ordering::is_le),
        Comparison::GreaterOrEqual => order(left, right).is_some_and(Ordering::is_ge),
        Comparison::Contains => contains(left, right),
        Comparison::Matches => match (text(left), text(right)) {
            (Some(text), Some(pattern)) => glob::matches(&pattern, &text),
            _ => false,
        },
    }
}

fn equal(left: &Side<'_>, right: &Side<'_>) -> bool {
    use Value::{Absent, Array, Bool, Null, Object, String};
    match (left, right) {
        (Side::Record(Absent | Null), Side::Record(Absent | Null)) => true,
        (Side::Record(Bool(a)), Side::Record(Bool(b))) => a == b,
        // Containers are equal only if written the same way.
        (Side::Record(Array(a)), Side::Record(Array(b)))
        | (Side::Record(Object(a)), Side::Record(Object(b))) => a == b,
        (Side::Record(String(json)), Side::Text(text))
        | (Side::Text(text), Side::Record(String(json))) => string::equals(json, text),
        _ => order(left, right) == Some(Ordering::Equal),
    }
}

/// The order of two texts or two numbers.
fn order(left: &Side<'_>, right: &Side<'_>) -> Option<Ordering> {
    if let (Some(a), Some(b)) = (number(left), number(right)) {
        return a.compare(b);
    }
    Some(text(left)?.cmp(&text(right)?))
}

fn contains(whole: &Side<'_>, part: &Side<'_>) -> bool {
    if let Side::Record(Value::Array(array)) = whole {
        return elements(array).any(|element| equal(&Side::Record(element), part));
    }
    match (text(whole), text(part)) {
        (Some(whole), Some(part)) => {
            part.is_empty() || whole.windows(part.len()).any(|window| window == &*part)
        }
        _ => false,
    }
}

fn number(side: &Side<'_>) -> Option<Number> {
    match side {
        Side::Number(number) => Some(*number),
        Side::Record(Value::Number(digits)) => Some(Number::of(digits)),
        _ => None,
    }
}

fn text<'a>(side: &Side<'a>) -> Option<std::borrow::Cow<'a, [u8]>> {
    match side {
        Side::Text(text) => Some((*text).into()),
        Side::Record(Value::String(json)) => Some(string::unescaped(json)),
        _ => None,
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    /// A name in backquotes, which is never a word of the language.
    Quoted(String),
    Text(String),
    Number(String),
    Symbol(&'static str),
    End,
}

struct Parser<'a> {
    source: &'a str,
    at: usize,
    token_at: usize,
    token: Token,
    paths: Vec<Vec<String>>,
}

/// Longest first.
const SYMBOLS: [&str; 12] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", ".",
];

impl Parser<'_> {
    fn or(&mut self, depth: usize) -> Result<Node, Error> {
        let first = self.and(depth)?;
        self.chain("||", first, depth, Self::and, Node::Or)
    }

    fn and(&mut self, depth: usize) -> Result<Node, Error> {
        let first = self.not(depth)?;
        self.chain("&&", first, depth, Self::not, Node::And)
    }

    fn chain(
        &mut self,
        symbol: &'static str,
        first: Node,
        depth: usize,
        next: fn(&mut Self, usize) -> Result<Node, Error>,
        all: fn(Vec<Node>) -> Node,
    ) -> Result<Node, Error> {
        let mut nodes = vec![first];
        while self.take(symbol)? {
            nodes.push(next(self, depth)?);
        }
        Ok(if nodes.len() == 1 {
            nodes.remove(0)
        } else {
            all(nodes)
        })
    }

    fn not(&mut self, depth: usize) -> Result<Node, Error> {
        if depth > DEPTH_MAX {
            return Err(self.expected("fewer parentheses or negations"));
        }
        if self.take("!")? {
            return Ok(Node::Not(Box::new(self.not(depth + 1)?)));
        }
        if self.take("(")? {
            let inner = self.or(depth + 1)?;
            self.require(")")?;
            return Ok(inner);
        }
        if self.token == Token::Name("exists".into()) {
            self.advance()?;
            self.require("(")?;
            let path = self.path()?;
            self.require(")")?;
            return Ok(Node::Exists(path));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Node, Error> {
        let left = self.operand()?;
        let comparison = match &self.token {
            Token::Symbol("==") => Comparison::Equal,
            Token::Symbol("!=") => Comparison::NotEqual,
            Token::Symbol("<") => Comparison::Less,
            Token::Symbol("<=") => Comparison::LessOrEqual,
            Token::Symbol(">") => Comparison::Greater,
            Token::Symbol(">=") => Comparison::GreaterOrEqual,
            Token::Name(name) if name == "contains" => Comparison::Contains,
            Token::Name(name) if name == "matches" => Comparison::Matches,
            _ => match left {
                Operand::Path(_) | Operand::Bool(_) => {
                    return Ok(Node::Compare(left, Comparison::Equal, Operand::Bool(true)));
                }
                _ => return Err(self.expected("a comparison")),
            },
        };
        self.advance()?;
        let right = self.operand()?;
        Ok(Node::Compare(left, comparison, right))
    }

    fn operand(&mut self) -> Result<Operand, Error> {
        let operand = match &self.token {
            Token::Text(text) => Operand::Text(text.clone().into_bytes()),
            Token::Number(digits) => Operand::Number(Number::of(digits.as_bytes())),
            Token::Name(name) => match name.as_str() {
                "true" => Operand::Bool(true),
                "false" => Operand::Bool(false),
                "null" => Operand::Null,
                _ => return self.path().map(Operand::Path),
            },
            Token::Quoted(_) => return self.path().map(Operand::Path),
            _ => return Err(self.expected("a path or a value")),
        };
        self.advance()?;
        Ok(operand)
    }

    fn path(&mut self) -> Result<usize, Error> {
        let mut path = Vec::new();
        loop {
            match &self.token {
                Token::Name(part) | Token::Quoted(part) => path.push(part.clone()),
                _ => return Err(self.expected("a name")),
            }
            // After a point, digits are a part of the path and no number.
            self.next_token(true)?;
            if self.token != Token::Symbol(".") {
                break;
            }
            self.next_token(true)?;
        }
        Ok(match self.paths.iter().position(|known| *known == path) {
            Some(known) => known,
            None => {
                self.paths.push(path);
                self.paths.len() - 1
            }
        })
    }

    fn take(&mut self, symbol: &'static str) -> Result<bool, Error> {
        let here = self.token == Token::Symbol(symbol);
        if here {
            self.advance()?;
        }
        Ok(here)
    }

    fn require(&mut self, symbol: &'static str) -> Result<(), Error> {
        if self.take(symbol)? {
            Ok(())
        } else {
            Err(self.expected(&format!("`{symbol}`")))
        }
    }

    fn expected(&self, what: &str) -> Error {
        Error {
            at: self.token_at,
            what: format!("expected {what}"),
        }
    }

    fn advance(&mut self) -> Result<(), Error> {
        self.next_token(false)
    }

    fn next_token(&mut self, in_path: bool) -> Result<(), Error> {
        let rest = self.source[self.at..].trim_ascii_start();
        self.token_at = self.source.len() - rest.len();
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '@' | '$');
        let Some(first) = rest.chars().next() else {
            self.at = self.source.len();
            self.token = Token::End;
            return Ok(());
        };
        let used;
        (self.token, used) = match first {
            '\'' | '"' | '`' => {
                let (text, used) = self.quoted(rest, first)?;
                let token = if first == '`' {
                    Token::Quoted(text)
                } else {
                    Token::Text(text)
                };
                (token, used)
            }
            '0'..='9' | '-' if !in_path => {
                let number = |c: char| matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E');
                let len = rest.find(|c| !number(c)).unwrap_or(rest.len());
                if !is_json_number(&rest[..len]) {
                    return Err(self.expected("a number"));
                }
                (Token::Number(rest[..len].into()), len)
            }
            c if is_name(c) => {
                let len = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                (Token::Name(rest[..len].into()), len)
            }
            _ => match SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
                Some(symbol) => (Token::Symbol(symbol), symbol.len()),
                None => {
                    return Err(
                        self.expected(&format!("no `{first}` here; an operator or a value"))
                    );
                }
            },
        };
        self.at = self.token_at + used;
        Ok(())
    }

    fn quoted(&self, rest: &str, quote: char) -> Result<(String, usize), Error> {
        let mut text = String::new();
        let mut chars = rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, c)) => text.push(c),
                    None => break,
                },
                c if c == quote => return Ok((text, at + 1)),
                c => text.push(c),
            }
        }
        Err(self.expected(&format!("a closing {quote}")))
    }
}

fn is_json_number(text: &str) -> bool {
    let mut scanner = crate::scan::Scanner::new(&[Vec::new()]);
    let found = scanner.scan(text.as_bytes());
    found.is_ok_and(|found| matches!(found.value(0), Value::Number(_)))
}
