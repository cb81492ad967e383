//! One pass over a JSON text that checks all of it and notes where the wanted values are.
//!
//! The wanted paths form a small tree. While the scan is inside an object that a wanted path goes
//! through, keys are compared; everything else is only checked and passed over. Where a key comes twice
//! in an object, the last one counts, as in JavaScript. A path part that is a number also selects from an array.
//!
//! Deliberately absent: a tree of the value, numbers as numbers and strings without escapes: those are
//! made when an expression compares them, see `number` and `string`.

use std::fmt;

use crate::string;

/// Containers inside one another.
const DEPTH_MAX: usize = 128;

/// Finds the values at a fixed set of paths.
#[derive(Debug)]
pub struct Scanner {
    /// The tree of paths; 0 is the root.
    nodes: Vec<Node>,
    /// What the last scan has found, in the order of the paths.
    places: Vec<Place>,
}

/// A place that wanted paths go through.
#[derive(Debug, Default)]
struct Node {
    /// Part of the path, what it is as an array position, and the node there.
    children: Vec<(Vec<u8>, Option<usize>, usize)>,
    /// Which path ends here.
    path: Option<usize>,
}

/// What was found in one text.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    text: &'a [u8],
    places: &'a [Place],
}

/// Where a value stands. A string's place is what is between its quotes.
#[derive(Clone, Copy, Debug)]
struct Place {
    kind: Kind,
    start: u32,
    end: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Absent,
    Null,
    True,
    False,
    Number,
    String,
    Array,
    Object,
}

const ABSENT: Place = Place {
    kind: Kind::Absent,
    start: 0,
    end: 0,
};

/// A value, as it stands in the text. It has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// There is none at this path.
    Absent,
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// The digits and all.
    Number(&'a [u8]),
    /// What is between the quotes, escapes and all.
    String(&'a [u8]),
    /// From `[` to `]`.
    Array(&'a [u8]),
    /// From `{` to `}`.
    Object(&'a [u8]),
}

/// Why and where a text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Byte position.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

impl<'a> Found<'a> {
    /// What is at path `path`.
    #[must_use]
    pub fn value(&self, path: usize) -> Value<'a> {
        self.places[path].value(self.text)
    }
}

impl Place {
    fn value(self, text: &[u8]) -> Value<'_> {
        let bytes = &text[self.start as usize..self.end as usize];
        match self.kind {
            Kind::Absent => Value::Absent,
            Kind::Null => Value::Null,
            Kind::True => Value::Bool(true),
            Kind::False => Value::Bool(false),
            Kind::Number => Value::Number(bytes),
            Kind::String => Value::String(bytes),
            Kind::Array => Value::Array(bytes),
            Kind::Object => Value::Object(bytes),
        }
    }
}

impl Scanner {
    /// For these paths, each a list of keys.
    #[must_use]
    pub fn new(paths: &[Vec<String>]) -> Self {
        let mut nodes = vec![Node::default()];
        for (path, parts) in paths.iter().enumerate() {
            let mut at = 0;
            for part in parts {
                let known = nodes[at]
                    .children
                    .iter()
                    .find(|(key, ..)| key == part.as_bytes());
                at = match known {
                    Some((.., node)) => *node,
                    None => {
                        let node = nodes.len();
                        nodes[at].children.push((
                            part.clone().into_bytes(),
                            part.parse().ok(),
                            node,
                        ));
                        nodes.push(Node::default());
                        node
                    }
                };
            }
            nodes[at].path = Some(path);
        }
        Self {
            nodes,
            places: vec![ABSENT; paths.len()],
        }
    }

    /// Scans one text.
    pub fn scan<'a>(&'a mut self, text: &'a [u8]) -> Result<Found<'a>, Invalid> {
        self.places.fill(ABSENT);
        let mut scan = Scan {
            nodes: &self.nodes,
            places: &mut self.places,
            text,
            at: 0,
        };
        scan.space();
        scan.value(Some(0), 0)?;
        scan.space();
        if scan.at < text.len() {
            return Err(scan.invalid("something after the value"));
        }
        Ok(Found {
            text,
            places: &self.places,
        })
    }
}

/// The elements of an array that has been scanned.
pub(crate) fn elements(array: &[u8]) -> impl Iterator<Item = Value<'_>> {
    let mut at = 1;
    std::iter::from_fn(move || {
        let mut scan = Scan {
            nodes: &[],
            places: &mut [],
            text: array,
            at,
        };
        while matches!(scan.peek(), Some(b' ' | b'\t' | b'\n' | b'\r' | b',')) {
            scan.at += 1;
        }
        if matches!(scan.peek(), None | Some(b']')) {
            return None;
        }
        let element = scan.value(None, 0).ok()?;
        at = scan.at;
        Some(element.value(array))
    })
}

/// A scan in progress.
struct Scan<'s, 'a> {
    nodes: &'s [Node],
    places: &'s mut [Place],
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'_, 'a> {
    /// Passes a value and notes it if a wanted path ends at `node`.
    fn value(&mut self, node: Option<usize>, depth: usize) -> Result<Place, Invalid> {
        let start = self.at as u32;
        let kind = match self.peek() {
            Some(b'"') => {
                self.string()?;
                Kind::String
            }
            Some(b'{') => {
                self.object(node, depth)?;
                Kind::Object
            }
            Some(b'[') => {
                self.array(node, depth)?;
                Kind::Array
            }
            Some(b't') => self.word(b"true", Kind::True)?,
            Some(b'f') => self.word(b"false", Kind::False)?,
            Some(b'n') => self.word(b"null", Kind::Null)?,
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
                Kind::Number
            }
            Some(_) => return Err(self.invalid("no value")),
            None => return Err(self.invalid("the end instead of a value")),
        };
        let quote = u32::from(kind == Kind::String);
        let place = Place {
            kind,
            start: start + quote,
            end: self.at as u32 - quote,
        };
        if let Some(path) = node.and_then(|node| self.nodes[node].path) {
            self.places[path] = place;
        }
        Ok(place)
    }

    fn object(&mut self, node: Option<usize>, depth: usize) -> Result<(), Invalid> {
        self.open(depth)?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.invalid("no key"));
            }
            let key = self.string()?;
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.invalid("no colon after a key"));
            }
            self.at += 1;
            self.space();
            let child = node.and_then(|node| self.child_at_key(node, key));
            self.value(child, depth + 1)?;
            if self.more(b'}', "no comma or } after a value")? {
                continue;
            }
            return Ok(());
        }
    }

    fn array(&mut self, node: Option<usize>, depth: usize) -> Result<(), Invalid> {
        self.open(depth)?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        for position in 0.. {
            let child = node.and_then(|node| {
                let children = &self.nodes[node].children;
                let found = children
                    .iter()
                    .find(|(_, number, _)| *number == Some(position));
                found.map(|(.., child)| *child)
            });
            if let Some(child) = child {
                self.forget(child);
            }
            self.value(child, depth + 1)?;
            if !self.more(b']', "no comma or ] after a value")? {
                break;
            }
        }
        Ok(())
    }

    /// Passes the opening bracket.
    fn open(&mut self, depth: usize) -> Result<(), Invalid> {
        if depth == DEPTH_MAX {
            return Err(self.invalid("nested more than 128 deep"));
        }
        self.at += 1;
        self.space();
        Ok(())
    }

    /// After a value in a container: whether another follows.
    fn more(&mut self, close: u8, what: &'static str) -> Result<bool, Invalid> {
        self.space();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                self.space();
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.invalid(what)),
        }
    }

    /// The node of a key, which is as it stands in the text.
    fn child_at_key(&mut self, node: usize, key: &[u8]) -> Option<usize> {
        let children = &self.nodes[node].children;
        let child = children
            .iter()
            .find(|(part, ..)| string::equals(key, part))?
            .2;
        self.forget(child);
        Some(child)
    }

    /// A key that comes again makes what was found below its first value void.
    fn forget(&mut self, node: usize) {
        let nodes = self.nodes;
        if let Some(path) = nodes[node].path {
            self.places[path] = ABSENT;
        }
        for (.., child) in &nodes[node].children {
            self.forget(*child);
        }
    }

    /// Passes a string: what is between its quotes.
    fn string(&mut self) -> Result<&'a [u8], Invalid> {
        self.at += 1;
        let start = self.at;
        let mut all_ascii = true;
        loop {
            let (plain, ascii) = string::plain(&self.text[self.at..]);
            self.at += plain;
            all_ascii &= ascii;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    let string = &self.text[start..self.at - 1];
                    // Only strings can have other bytes at all.
                    if !all_ascii && let Err(error) = str::from_utf8(string) {
                        self.at = start + error.valid_up_to();
                        return Err(self.invalid("not UTF-8"));
                    }
                    return Ok(string);
                }
                Some(b'\\') => match self.text[self.at + 1..] {
                    [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => self.at += 2,
                    [b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(u8::is_ascii_hexdigit) => {
                        self.at += 6;
                    }
                    _ => return Err(self.invalid("no such escape")),
                },
                Some(_) => return Err(self.invalid("a control character in a string")),
                None => return Err(self.invalid("the end inside a string")),
            }
        }
    }

    fn number(&mut self) -> Result<(), Invalid> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Invalid> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.invalid("no digit in a number"));
        }
        Ok(())
    }

    fn word(&mut self, word: &[u8], kind: Kind) -> Result<Kind, Invalid> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.invalid("no value"));
        }
        self.at += word.len();
        Ok(kind)
    }

    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn invalid(&self, what: &'static str) -> Invalid {
        Invalid { at: self.at, what }
    }
}
