//! MQTT topic filters: what is one, and which topics it takes.

/// Longer filters are no channel of anyone.
const MAX_LENGTH: usize = 1024;

/// Whether a filter is well-formed: `+` is a whole level, `#` the whole last one.
pub(super) fn is_valid(filter: &str) -> bool {
    if filter.is_empty() || filter.len() > MAX_LENGTH || filter.contains('\0') {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let is_last = levels.peek().is_none();
        let wild = level.contains(['+', '#']);
        if wild && !(level == "+" || (level == "#" && is_last)) {
            return false;
        }
    }
    true
}

/// Whether a well-formed filter takes a topic. Wildcards leave topics that
/// begin with `$` alone.
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut wanted, mut levels) = (filter.split('/'), topic.split('/'));
    loop {
        match (wanted.next(), levels.next()) {
            // `a/#` takes `a` as well.
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_take_what_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/b/c", "a/b", false),
            ("a/+/c", "a/b/c", true),
            ("a/+", "a", false),
            ("+", "a", true),
            ("+/+", "/a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "a", true),
            ("#", "ä/b", true),
            ("#", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
        ] {
            assert!(is_valid(filter), "{filter}");
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
        for filter in ["", "a#", "#/a", "a+/b", "++", "a\0", &"a".repeat(2000)] {
            assert!(!is_valid(filter), "{filter}");
        }
    }
}
