//! Password hashes: the accounts stay, the hashes do not.

use super::Rewritten;
use crate::error::Result;
use crate::path::GuestPath;
use crate::read_at::read_all;
use crate::source::Source;
use std::collections::BTreeMap;

/// The rule's name.
pub const RULE: &str = "password-hash";

/// What the rule says to people.
pub const WHY: &str =
    "a hash can be broken by anyone who has the image; the account stays, without a password";

/// The files with a password in their second field: passwd(5), shadow(5), gshadow(5), and the copies their tools keep.
const FILES: [&str; 8] = [
    "/etc/passwd",
    "/etc/passwd-",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/group",
    "/etc/group-",
    "/etc/gshadow",
    "/etc/gshadow-",
];

/// Larger files are no account databases.
const LIMIT: u64 = 64 << 20;

/// `text` with `*` in place of every password hash (a locked one keeps its `!`); `None` if there is none.
pub fn redact(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut found = false;
    for line in text.split_inclusive(|b| *b == b'\n') {
        let mut fields = line.splitn(3, |b| *b == b':');
        match (fields.next(), fields.next(), fields.next()) {
            (Some(name), Some(password), Some(rest)) if !name.starts_with(b"#") && is_hash(password) => {
                found = true;
                let locked = password.iter().take_while(|b| **b == b'!').count();
                out.extend_from_slice(name);
                out.push(b':');
                out.extend(std::iter::repeat_n(b'!', locked));
                out.extend_from_slice(b"*:");
                out.extend_from_slice(rest);
            }
            _ => out.extend_from_slice(line),
        }
    }
    found.then_some(out)
}

/// crypt(5): a hash has at least 13 characters; `x`, `*`, `!`, `!!`, `*LK*`, `NP` and the empty field are none.
fn is_hash(password: &[u8]) -> bool {
    password.iter().skip_while(|b| **b == b'!').count() >= 13
}

/// True for a file that is rewritten where it holds a hash, so that the file itself need not stay out.
pub fn handles(path: &GuestPath) -> bool {
    FILES.iter().any(|f| f.as_bytes() == path.as_bytes())
}

/// The account files of `source` that hold hashes, with the content that the image gets.
///
/// # Errors
/// As the source's reader.
pub fn password_files(source: &dyn Source) -> Result<BTreeMap<GuestPath, Rewritten>> {
    let mut files = BTreeMap::new();
    for name in FILES {
        let path = GuestPath::new(name.as_bytes())?;
        let Some(node) = source
            .tree()
            .get(&path)
            .filter(|n| n.is_file() && n.size() <= LIMIT)
        else {
            continue;
        };
        if let Some(content) = redact(&read_all(&*source.open(node.id)?, LIMIT)?) {
            files.insert(
                path,
                Rewritten {
                    rule: RULE.into(),
                    content,
                },
            );
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_go_and_accounts_stay() {
        let shadow = b"root:$6$salt$hash1234567890:19000:0:99999:7:::\ndaemon:*:19000::::::\nbob:!$y$j9T$abcdefghijk:1::::::\nx:!:1:\nlast:abcdefghijklm:1";
        let wanted = b"root:*:19000:0:99999:7:::\ndaemon:*:19000::::::\nbob:!*:1::::::\nx:!:1:\nlast:*:1";
        assert_eq!(redact(shadow).unwrap(), wanted);
        assert_eq!(redact(wanted), None, "nothing is left to find");
        assert_eq!(
            redact(b"root:x:0:0:root:/root:/bin/bash\n# comment:with a long second field:x\n"),
            None
        );
    }
}
