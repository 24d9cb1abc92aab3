//! Patterns of ssh_config(5): `*`, `?`, lists with commas or spaces, and `!` for what must not match.

/// True if `text` matches `pattern`, in which `*` stands for any bytes and `?` for one.
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last `*` does not fit: it takes one byte more.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(p), text.get(t)) {
            (Some(b'*'), _) => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            (Some(b'?'), Some(_)) => {
                p += 1;
                t += 1;
                continue;
            }
            (Some(a), Some(b)) if a == b => {
                p += 1;
                t += 1;
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        match retry {
            Some((after, from)) if from < text.len() => {
                (p, t) = (after, from + 1);
                retry = Some((after, from + 1));
            }
            _ => return false,
        }
    }
}

/// True if one of `patterns` matches `text` and none with `!` in front does.
pub(super) fn matches_any<'a>(patterns: impl IntoIterator<Item = &'a str>, text: &str) -> bool {
    let mut found = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(pattern) => {
                if matches(pattern.as_bytes(), text.as_bytes()) {
                    return false;
                }
            }
            None => found = found || matches(pattern.as_bytes(), text.as_bytes()),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_and_negation() {
        let m = |p: &str, t: &str| matches(p.as_bytes(), t.as_bytes());
        assert!(m("*", "") && m("*", "web1") && m("web?", "web1") && m("*.example.com", "a.b.example.com"));
        assert!(m("a*b*c", "aXbYbc") && m("**", "x") && m("10.0.*.?", "10.0.22.1"));
        assert!(!m("web?", "web") && !m("*.example.com", "example.com") && !m("a*b", "ac") && !m("", "a"));
        assert!(matches_any(["web*", "!web2"], "web1"));
        assert!(!matches_any(["web*", "!web2"], "web2"));
        assert!(!matches_any(["!web2"], "web1"));
    }

    #[test]
    fn a_hostile_pattern_ends_soon() {
        let pattern = "*a".repeat(500);
        assert!(!matches(pattern.as_bytes(), "a".repeat(499).as_bytes()));
        assert!(!matches(pattern.as_bytes(), "b".repeat(20_000).as_bytes()));
    }
}
