//! How versions are ordered: each family has rules of its own.
//!
//! Any text is ordered, also one that breaks the grammar of its family: the rules then say something, and never fail.

use std::cmp::Ordering;

/// The rules of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// deb-version(7): `epoch:upstream-revision`, `~` before everything, letters before other characters.
    Dpkg,
    /// rpm-version(7): `epoch:version-release`, `~` before and `^` after what they follow.
    Rpm,
    /// apk-package(5): `1.2.3b_rc1_p2~hash-r3`.
    Apk,
    /// vercmp(8): `epoch:version-pkgrel`; a pkgrel counts only where both have one.
    Alpm,
}

/// How a relation compares: the installed version stands on the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `=`
    Equal,
    /// `>=`
    GreaterEqual,
    /// `>`
    Greater,
    /// `~` (apk): equal as far as the wanted version goes.
    Fuzzy,
    /// `>~` (apk): greater, or equal as far as the wanted version goes.
    GreaterFuzzy,
    /// `<~` (apk): less, or equal as far as the wanted version goes.
    LessFuzzy,
}

impl Op {
    /// The sign, as people write it.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessEqual => "<=",
            Self::Equal => "=",
            Self::GreaterEqual => ">=",
            Self::Greater => ">",
            Self::Fuzzy => "~",
            Self::GreaterFuzzy => ">~",
            Self::LessFuzzy => "<~",
        }
    }

    /// True if `order` of the installed version against the wanted one is what this asks for.
    fn accepts(self, order: Ordering) -> bool {
        match self {
            Self::Less => order.is_lt(),
            Self::LessEqual | Self::LessFuzzy => order.is_le(),
            Self::Equal | Self::Fuzzy => order.is_eq(),
            Self::GreaterEqual | Self::GreaterFuzzy => order.is_ge(),
            Self::Greater => order.is_gt(),
        }
    }
}

impl Order {
    /// The order of two full versions. Total, but for alpm, where a version without a pkgrel equals each with one.
    pub fn compare(self, a: &str, b: &str) -> Ordering {
        match self {
            Self::Dpkg => {
                let (a, b) = (Evr::split(a, Self::Dpkg), Evr::split(b, Self::Dpkg));
                let order = number(a.epoch, b.epoch).then_with(|| dpkg(a.version, b.version));
                order.then_with(|| dpkg(a.release.unwrap_or(""), b.release.unwrap_or("")))
            }
            Self::Rpm => {
                let (a, b) = (Evr::split(a, Self::Rpm), Evr::split(b, Self::Rpm));
                let order = number(a.epoch, b.epoch).then_with(|| rpm(a.version, b.version));
                order.then_with(|| match (a.release, b.release) {
                    (Some(a), Some(b)) => rpm(a, b),
                    (a, b) => a.is_some().cmp(&b.is_some()),
                })
            }
            Self::Apk => apk(a, b, false),
            Self::Alpm => {
                let (a, b) = (Evr::split(a, Self::Alpm), Evr::split(b, Self::Alpm));
                let order = number(a.epoch, b.epoch).then_with(|| alpm(a.version, b.version));
                order.then_with(|| match (a.release, b.release) {
                    (Some(a), Some(b)) => alpm(a, b),
                    _ => Ordering::Equal,
                })
            }
        }
    }

    /// True if `have` fulfils `op want`. In rpm and alpm a release counts only where both have one.
    pub fn satisfies(self, have: &str, op: Op, want: &str) -> bool {
        let order = match self {
            Self::Apk => {
                let fuzzy = matches!(op, Op::Fuzzy | Op::GreaterFuzzy | Op::LessFuzzy);
                apk(have, want, fuzzy)
            }
            Self::Rpm => {
                let (a, b) = (Evr::split(have, Self::Rpm), Evr::split(want, Self::Rpm));
                let order = number(a.epoch, b.epoch).then_with(|| rpm(a.version, b.version));
                order.then_with(|| match (a.release, b.release) {
                    (Some(a), Some(b)) => rpm(a, b),
                    _ => Ordering::Equal,
                })
            }
            Self::Dpkg | Self::Alpm => self.compare(have, want),
        };
        op.accepts(order)
    }
}

/// Epoch, version, release.
struct Evr<'a> {
    epoch: &'a str,
    version: &'a str,
    release: Option<&'a str>,
}

impl<'a> Evr<'a> {
    fn split(text: &'a str, order: Order) -> Self {
        let (epoch, rest) = match text.split_once(':') {
            Some((epoch, rest)) if epoch.bytes().all(|b| b.is_ascii_digit()) => (epoch, rest),
            _ => ("", text),
        };
        let (version, release) = match rest.rsplit_once('-') {
            Some((version, release)) => (version, Some(release)),
            None => (rest, None),
        };
        // rpm takes an empty release as none.
        let release = release.filter(|r| order != Order::Rpm || !r.is_empty());
        Self {
            epoch,
            version,
            release,
        }
    }
}

/// Digits as a number of any length; no digits are 0.
fn number(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// The first part of `text` whose bytes are all `of`, and the rest.
fn span(text: &str, of: impl Fn(u8) -> bool) -> (&str, &str) {
    let end = text.bytes().position(|b| !of(b)).unwrap_or(text.len());
    // The bytes of characters beyond ASCII are all of one kind, so that this is a boundary; where it is not, the text
    // is taken as a whole.
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// deb-version(7), "Sorting algorithm": parts without digits and numbers in turn.
fn dpkg(mut a: &str, mut b: &str) -> Ordering {
    let weight = |byte: Option<u8>| match byte {
        None => 0,
        Some(b'~') => -1,
        Some(b) if b.is_ascii_alphabetic() => i32::from(b),
        Some(b) => i32::from(b) + 256,
    };
    while !a.is_empty() || !b.is_empty() {
        let (words_a, rest_a) = span(a, |b| !b.is_ascii_digit());
        let (words_b, rest_b) = span(b, |b| !b.is_ascii_digit());
        let (mut left, mut right) = (words_a.bytes(), words_b.bytes());
        loop {
            let (x, y) = (left.next(), right.next());
            if x.is_none() && y.is_none() {
                break;
            }
            let order = weight(x).cmp(&weight(y));
            if order.is_ne() {
                return order;
            }
        }
        let (digits_a, next_a) = span(rest_a, |b| b.is_ascii_digit());
        let (digits_b, next_b) = span(rest_b, |b| b.is_ascii_digit());
        let order = number(digits_a, digits_b);
        if order.is_ne() {
            return order;
        }
        (a, b) = (next_a, next_b);
    }
    Ordering::Equal
}

/// rpm-version(7): segments of digits or letters; what is neither only separates, but for `~` and `^`.
fn rpm(mut a: &str, mut b: &str) -> Ordering {
    if a == b {
        return Ordering::Equal;
    }
    let separates = |b: u8| !b.is_ascii_alphanumeric() && b != b'~' && b != b'^';
    while !a.is_empty() || !b.is_empty() {
        (_, a) = span(a, separates);
        (_, b) = span(b, separates);
        match (a.strip_prefix('~'), b.strip_prefix('~')) {
            (Some(next_a), Some(next_b)) => {
                (a, b) = (next_a, next_b);
                continue;
            }
            (None, Some(_)) => return Ordering::Greater,
            (Some(_), None) => return Ordering::Less,
            (None, None) => {}
        }
        match (a.strip_prefix('^'), b.strip_prefix('^')) {
            (Some(next_a), Some(next_b)) => {
                (a, b) = (next_a, next_b);
                continue;
            }
            // `^` is greater than the end, and less than anything else that goes on.
            (None, Some(_)) if a.is_empty() => return Ordering::Less,
            (Some(_), None) if b.is_empty() => return Ordering::Greater,
            (None, Some(_)) => return Ordering::Greater,
            (Some(_), None) => return Ordering::Less,
            (None, None) => {}
        }
        if a.is_empty() || b.is_empty() {
            break;
        }
        match segment(&mut a, &mut b) {
            Ordering::Equal => {}
            order => return order,
        }
    }
    (!a.is_empty()).cmp(&!b.is_empty())
}

/// Takes the next segment off both, of the kind that `a` begins with, and compares the two.
fn segment(a: &mut &str, b: &mut &str) -> Ordering {
    let digits = a.starts_with(|c: char| c.is_ascii_digit());
    let kind = |b: u8| {
        if digits {
            b.is_ascii_digit()
        } else {
            b.is_ascii_alphabetic()
        }
    };
    let (left, next_a) = span(a, kind);
    let (right, next_b) = span(b, kind);
    (*a, *b) = (next_a, next_b);
    match (right.is_empty(), digits) {
        // A number is newer than letters.
        (true, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
        (false, true) => number(left, right),
        (false, false) => left.cmp(right),
    }
}

/// vercmp(8): as rpm once did, and the length of a separator counts.
fn alpm(mut a: &str, mut b: &str) -> Ordering {
    if a == b {
        return Ordering::Equal;
    }
    while !a.is_empty() && !b.is_empty() {
        let (between_a, next_a) = span(a, |b| !b.is_ascii_alphanumeric());
        let (between_b, next_b) = span(b, |b| !b.is_ascii_alphanumeric());
        (a, b) = (next_a, next_b);
        if a.is_empty() || b.is_empty() {
            break;
        }
        match between_a.len().cmp(&between_b.len()) {
            Ordering::Equal => {}
            order => return order,
        }
        match segment(&mut a, &mut b) {
            Ordering::Equal => {}
            order => return order,
        }
    }
    // What is left is newer, unless it is letters: 1.0rc is older than 1.0.
    let letters = |text: &str| text.starts_with(|c: char| c.is_ascii_alphabetic());
    match (a.is_empty(), b.is_empty()) {
        (true, true) => Ordering::Equal,
        (true, false) if letters(b) => Ordering::Greater,
        (true, false) => Ordering::Less,
        (false, _) if letters(a) => Ordering::Less,
        (false, _) => Ordering::Greater,
    }
}

/// The parts of an apk version, in the order in which they may follow each other. A version that ends before a part of
/// another is the greater the earlier that part stands in this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    First,
    Number,
    Letter,
    Suffix,
    SuffixNumber,
    Hash,
    Revision,
    End,
    Invalid,
}

/// Suffixes of apk versions; those before `NO_SUFFIX` come before the version without one.
const SUFFIXES: &[&str] = &["alpha", "beta", "pre", "rc", "", "cvs", "svn", "git", "hg", "p"];
const NO_SUFFIX: usize = 4;

/// Walks through the parts of an apk version.
struct Parts<'a> {
    rest: &'a str,
    last: Option<Part>,
}

impl<'a> Parts<'a> {
    /// The next part: its kind, its text without the sign before it, the rank of a suffix.
    fn next(&mut self) -> (Part, &'a str, usize) {
        let (part, text, rank) = self.read();
        self.last = Some(part);
        (part, text, rank)
    }

    fn read(&mut self) -> (Part, &'a str, usize) {
        let invalid = (Part::Invalid, self.rest, NO_SUFFIX);
        let Some(last) = self.last else {
            let digits = self.digits();
            return match digits {
                "" => invalid,
                _ => (Part::First, digits, NO_SUFFIX),
            };
        };
        let Some(first) = self.rest.chars().next() else {
            return (Part::End, "", NO_SUFFIX);
        };
        match first {
            'a'..='z' if last <= Part::Number => {
                let (letter, rest) = self.rest.split_at_checked(1).unwrap_or((self.rest, ""));
                self.rest = rest;
                (Part::Letter, letter, NO_SUFFIX)
            }
            '.' if last <= Part::Number => {
                self.skip();
                match self.digits() {
                    "" => invalid,
                    digits => (Part::Number, digits, NO_SUFFIX),
                }
            }
            '_' if last <= Part::SuffixNumber => {
                self.skip();
                let (word, rest) = span(self.rest, |b| b.is_ascii_lowercase());
                self.rest = rest;
                match SUFFIXES.iter().position(|s| *s == word && !s.is_empty()) {
                    Some(rank) => (Part::Suffix, word, rank),
                    None => invalid,
                }
            }
            '0'..='9' if last == Part::Suffix => (Part::SuffixNumber, self.digits(), NO_SUFFIX),
            '~' if last < Part::Hash => {
                self.skip();
                let (hash, rest) = span(self.rest, |b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                self.rest = rest;
                match hash {
                    "" => invalid,
                    _ => (Part::Hash, hash, NO_SUFFIX),
                }
            }
            '-' if last < Part::Revision && self.rest.starts_with("-r") => {
                self.skip();
                self.skip();
                match self.digits() {
                    "" => invalid,
                    digits => (Part::Revision, digits, NO_SUFFIX),
                }
            }
            _ => invalid,
        }
    }

    fn skip(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }

    fn digits(&mut self) -> &'a str {
        let (digits, rest) = span(self.rest, |b| b.is_ascii_digit());
        self.rest = rest;
        digits
    }
}

/// The order of two apk versions. `fuzzy`: they are equal if `b` ends and was equal so far.
fn apk(a: &str, b: &str, fuzzy: bool) -> Ordering {
    let mut left = Parts { rest: a, last: None };
    let mut right = Parts { rest: b, last: None };
    loop {
        let (part_a, text_a, rank_a) = left.next();
        let (part_b, text_b, rank_b) = right.next();
        if fuzzy && part_b == Part::End {
            return Ordering::Equal;
        }
        if part_a != part_b {
            // A suffix of a version that is not out yet comes before everything.
            let early = |part, rank| part == Part::Suffix && rank < NO_SUFFIX;
            return match (early(part_a, rank_a), early(part_b, rank_b)) {
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
                _ => part_b.cmp(&part_a),
            };
        }
        let order = match part_a {
            Part::End => return Ordering::Equal,
            Part::Invalid => return text_a.cmp(text_b),
            // Leading zeros: as after a decimal point.
            Part::Number if text_a.starts_with('0') || text_b.starts_with('0') => text_a.cmp(text_b),
            Part::First | Part::Number | Part::SuffixNumber | Part::Revision => number(text_a, text_b),
            Part::Suffix => rank_a.cmp(&rank_b),
            Part::Letter | Part::Hash => text_a.cmp(text_b),
        };
        if order.is_ne() {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Each row is `a sign b`.
    fn table(order: Order, rows: &[&str]) {
        for row in rows {
            let words: Vec<&str> = row.split(' ').collect();
            let &[a, sign, b] = words.as_slice() else {
                panic!("{row}")
            };
            let wanted = match sign {
                "<" => Ordering::Less,
                "=" => Ordering::Equal,
                ">" => Ordering::Greater,
                _ => panic!("{row}"),
            };
            assert_eq!(order.compare(a, b), wanted, "{row}");
            assert_eq!(order.compare(b, a), wanted.reverse(), "{row}, turned");
        }
    }

    #[test]
    fn versions_of_dpkg() {
        table(
            Order::Dpkg,
            &[
                "1 < 2",
                "1.10 > 1.9",
                "1:1 > 2",
                "0:1 = 1",
                "1.0~rc1 < 1.0",
                "1.0~~ < 1.0~",
                "1.0~ < 1.0",
                "1.0 < 1.0a",
                "1.0a < 1.0+",
                "1.0-1 < 1.0-1+b1",
                "1.0 = 1.0-0",
                "1.0-1~bpo < 1.0-1",
                "2.02+dfsg1-20 > 2.02-1",
                "001 = 1",
                "1.2-3-4 > 1.2-3-3",
                "99999999999999999999998 < 99999999999999999999999",
            ],
        );
    }

    /// The examples of rpm-version(7).
    #[test]
    fn versions_of_rpm() {
        table(
            Order::Rpm,
            &[
                "1.0 < 2.0",
                "2.0.1 > 2.0",
                "2.0.1a > 2.0.1",
                "5.5p1 < 5.5p10",
                "10xyz < 10.1xyz",
                "xyz10 > xyz.4",
                "xyz.4 < 8",
                "6.0.rc1 > 6.0",
                "10b2 > 10a1",
                "1.0~rc1 < 1.0",
                "1.0~rc1~git123 < 1.0~rc1",
                "1.0^ > 1.0",
                "1.0^git1 < 1.0.1",
                "1.0^20160101 < 1.0.1",
                "1.0~rc1^git1 > 1.0~rc1",
                "1.0^git1~pre < 1.0^git1",
                "2_0 = 2.0",
                "a+ = a_",
                "1:1-1 > 2-1",
                "1-1 < 1-2",
                "1 < 1-1",
                "010 = 10",
            ],
        );
        assert!(Order::Rpm.satisfies("1.0-5", Op::Equal, "1.0"));
        assert!(!Order::Rpm.satisfies("1.0-5", Op::Greater, "1.0"));
        assert!(Order::Rpm.satisfies("1:1.0-5", Op::Greater, "2.0"));
        assert!(Order::Rpm.satisfies("1.0-5", Op::GreaterEqual, "0:1.0-5"));
    }

    /// Facts of apk-tools' own list of comparisons, one of each kind.
    #[test]
    fn versions_of_apk() {
        table(
            Order::Apk,
            &[
                "2.34 > 0.1.0_alpha",
                "1.0 < 1.0bc",
                "0.1.0_alpha = 0.1.0_alpha",
                "0.1.0_alpha2 > 0.1.0_alpha",
                "1.1 > 1.1_alpha1",
                "1.3_alpha < 1.3_alpha2",
                "2.5.1-r8 < 2.5.1a-r1",
                "3.1_p16 < 3.1_p17",
                "1.06-r6 < 006",
                "1.00_beta2 > 0.9.2",
                "4.2.52_p2-r1 < 4.2.52_p4-r2",
                "1.0_p10-r0 > 1.0_p9-r0",
                "0.1.0_alpha_pre2 < 0.1.0_alpha",
                "6.0_pre1 < 6.0",
                "6.0_p1 > 6.0",
                "8.2.0 < 8.2.001",
                "8.2.0015 < 8.2.002",
                "1.0~1234 < 1.0~2345",
                "1.0~1234-r1 < 1.0~2345-r0",
                "1.0~1234-r1 > 1.0~1234-r0",
                "0.9.28-r2 < 0.9.28.1",
                "7.0.17 < 7.0.174",
                "6b-r7 > 1.12-r7",
                "1.3-r0 < 1.3.1-r0",
                "1.3_pre1-r1 < 1.3.2",
                "1.2 < 1.2-r0",
            ],
        );
        for (have, op, want, yes) in [
            ("3.6.0", Op::Fuzzy, "3.6", true),
            ("3.6_pre1", Op::Fuzzy, "3.6", true),
            ("3.6.9-r1", Op::Fuzzy, "3.6", true),
            ("3.5", Op::Fuzzy, "3.6", false),
            ("3.8", Op::Fuzzy, "3.8.1", false),
            ("3.7", Op::GreaterFuzzy, "3.6", true),
            ("3.5", Op::LessFuzzy, "3.6", true),
            ("3.6.4", Op::LessFuzzy, "3.6", true),
        ] {
            assert_eq!(
                Order::Apk.satisfies(have, op, want),
                yes,
                "{have} {} {want}",
                op.sign()
            );
        }
    }

    /// The examples of vercmp(8), and what follows from its words.
    #[test]
    fn versions_of_alpm() {
        table(
            Order::Alpm,
            &[
                "1.0a < 1.0b",
                "1.0b < 1.0beta",
                "1.0beta < 1.0p",
                "1.0p < 1.0pre",
                "1.0pre < 1.0rc",
                "1.0rc < 1.0",
                "1.0 < 1.0.a",
                "1.0.a < 1.0.1",
                "1 < 1.0",
                "1.0 < 1.1",
                "1.1 < 1.1.1",
                "1.1.1 < 1.2",
                "1.2 < 2.0",
                "2.0 < 3.0.0",
                "1:1.0 > 2.0",
                "1.0-1 < 1.0-2",
                "1.0 = 1.0-2",
                "0:1.0 = 1.0",
                "2___a > 2_a",
            ],
        );
    }

    fn version() -> impl Strategy<Value = String> {
        // Few characters, so that versions are often equal up to a point.
        proptest::collection::vec(
            proptest::sample::select(vec![
                "0", "1", "2", "10", "a", "b", "rc", ".", "+", "~", "^", "_p", "_alpha",
            ]),
            1..8,
        )
        .prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn orders_are_total(a in version(), b in version(), c in version(), release in 0..3u8) {
            let full = |v: &str| format!("{v}-{release}");
            let (a, b, c) = (full(&a), full(&b), full(&c));
            for order in [Order::Dpkg, Order::Rpm] {
                prop_assert_eq!(order.compare(&a, &b), order.compare(&b, &a).reverse());
                prop_assert_eq!(order.compare(&a, &a), Ordering::Equal);
                if order.compare(&a, &b).is_le() && order.compare(&b, &c).is_le() {
                    prop_assert!(order.compare(&a, &c).is_le(), "{:?}: {} {} {}", order, a, b, c);
                }
            }
        }

        #[test]
        fn versions_of_apk_are_in_order(
            parts in proptest::collection::vec(("[0-9]{1,2}(\\.[1-9][0-9]?){0,2}", "[ab]?", "(_(alpha|rc|p|git)[0-9]?){0,2}", 0..3u8), 3)
        ) {
            let all: Vec<String> = parts.iter().map(|(n, l, s, r)| format!("{n}{l}{s}-r{r}")).collect();
            let compare = |a: usize, b: usize| Order::Apk.compare(&all[a], &all[b]);
            prop_assert_eq!(compare(0, 1), compare(1, 0).reverse());
            if compare(0, 1).is_le() && compare(1, 2).is_le() {
                prop_assert!(compare(0, 2).is_le(), "{:?}", all);
            }
        }

        #[test]
        fn any_text_has_a_place(a in ".{0,12}", b in ".{0,12}") {
            for order in [Order::Dpkg, Order::Rpm, Order::Apk, Order::Alpm] {
                prop_assert_eq!(order.compare(&a, &b), order.compare(&b, &a).reverse());
                prop_assert_eq!(order.compare(&a, &a), Ordering::Equal);
                order.satisfies(&a, Op::Fuzzy, &b);
            }
        }
    }
}
