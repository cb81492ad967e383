//! Names and patterns of topics. A name never holds `*` or `?`, so a pattern is told from a name by them.

/// Whether this stands for any number of topics.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// The topics that are asked for: names as they are, patterns as what they match, each once.
///
/// # Errors
/// The pattern that matches nothing.
pub(super) fn resolve(asked: &[String], known: &[String]) -> Result<Vec<String>, String> {
    let mut topics: Vec<String> = Vec::new();
    let mut add = |name: &String| {
        if !topics.contains(name) {
            topics.push(name.clone());
        }
    };
    for text in asked {
        if !is_pattern(text) {
            add(text);
            continue;
        }
        let matching: Vec<_> = known.iter().filter(|name| matches(text, name)).collect();
        if matching.is_empty() {
            return Err(format!(
                "no topic matches `{text}`; `millstream topic list` shows those that there are"
            ));
        }
        matching.into_iter().for_each(&mut add);
    }
    Ok(topics)
}

/// `*` is any text, `?` any character.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where the last `*` stands, and how much of the name it takes so far.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, n) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("orders-*", "orders-eu", true),
            ("orders-*", "orders-", true),
            ("orders-*", "orders", false),
            ("*", "x", true),
            ("*-eu", "a-eu-eu", true),
            ("*-eu", "a-eu-us", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xxaxbx", true),
            ("*a*b*", "xxbxax", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn names_stay_and_patterns_become_what_there_is() {
        let list = |texts: &[&str]| {
            texts
                .iter()
                .map(|&text| text.to_owned())
                .collect::<Vec<_>>()
        };
        let known = list(&["a-1", "a-2", "b"]);
        let resolved = |asked: &[&str]| resolve(&list(asked), &known);
        assert_eq!(resolved(&["a-*"]), Ok(list(&["a-1", "a-2"])));
        assert_eq!(
            resolved(&["a-2", "a-*", "b"]),
            Ok(list(&["a-2", "a-1", "b"]))
        );
        // A name that is not there is the broker's to refuse.
        assert_eq!(resolved(&["c"]), Ok(list(&["c"])));
        assert!(resolved(&["b", "c*"]).unwrap_err().contains("`c*`"));
    }
}
