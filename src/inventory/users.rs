//! Users of the machine: passwd(5), group(5), and whether shadow(5) lets them in. Never a hash.

use crate::error::Result;
use crate::source::{Source, read_file};
use std::collections::HashMap;

const LIMIT: u64 = 16 << 20;

/// One line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
    /// Names of all groups the user is in, the primary one first.
    pub groups: Vec<String>,
    /// Home directory.
    pub home: String,
    /// Login shell; empty means `/bin/sh`.
    pub shell: String,
    /// True if the shell is one to log in with.
    pub login: bool,
    /// True if a password opens the account; `None` if `/etc/shadow` says nothing of it.
    pub password: Option<bool>,
}

/// Reads the users in the order of their file; none if there is no such file. Lines that break the rules are skipped
/// and counted in the second value.
///
/// # Errors
/// As the source's reader.
pub fn read(source: &dyn Source) -> Result<(Vec<User>, usize)> {
    let Some(passwd) = read_file(source, "/etc/passwd", LIMIT)? else {
        return Ok((Vec::new(), 0));
    };
    let group = read_file(source, "/etc/group", LIMIT)?.unwrap_or_default();
    let shadow = read_file(source, "/etc/shadow", LIMIT)?.unwrap_or_default();
    let mut by_gid: HashMap<u32, String> = HashMap::new();
    let mut by_member: HashMap<String, Vec<String>> = HashMap::new();
    for fields in lines(&group) {
        let [name, _, gid, members, ..] = fields.as_slice() else {
            continue;
        };
        if let Ok(gid) = gid.parse() {
            by_gid.entry(gid).or_insert_with(|| name.clone());
        }
        for member in members.split(',').filter(|m| !m.is_empty()) {
            by_member.entry(member.to_owned()).or_default().push(name.clone());
        }
    }
    let mut passwords: HashMap<String, bool> = HashMap::new();
    for fields in lines(&shadow) {
        if let [name, hash, ..] = fields.as_slice() {
            passwords.insert(name.clone(), opens(hash));
        }
    }
    let (mut users, mut bad) = (Vec::new(), 0);
    for fields in lines(&passwd) {
        let [name, hash, uid, gid, _, home, shell, ..] = fields.as_slice() else {
            bad += 1;
            continue;
        };
        let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else {
            bad += 1;
            continue;
        };
        let mut groups: Vec<String> = by_gid.get(&gid).cloned().into_iter().collect();
        for other in by_member.get(name).into_iter().flatten() {
            if !groups.contains(other) {
                groups.push(other.clone());
            }
        }
        let password = match hash.as_str() {
            "x" => passwords.get(name).copied(),
            hash => Some(opens(hash)),
        };
        let program = shell.rsplit('/').next().unwrap_or_default();
        users.push(User {
            login: !matches!(
                program,
                "nologin" | "false" | "true" | "sync" | "halt" | "shutdown"
            ),
            name: name.clone(),
            uid,
            gid,
            groups,
            home: home.clone(),
            shell: shell.clone(),
            password,
        });
    }
    Ok((users, bad))
}

/// True if the second field of passwd or shadow lets somebody in: a hash, or nothing at all.
fn opens(hash: &str) -> bool {
    !hash.starts_with(['!', '*']) && hash != "x"
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = Vec<String>> {
    bytes
        .split(|b| *b == b'\n')
        .map(<[u8]>::trim_ascii)
        // NIS entries begin with `+` or `-`.
        .filter(|l| !l.is_empty() && !l.starts_with(b"#") && !l.starts_with(b"+") && !l.starts_with(b"-"))
        .map(|l| String::from_utf8_lossy(l).split(':').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::MemorySource;

    #[test]
    fn who_can_log_in() {
        let source = MemorySource::new("m")
            .file(
                "/etc/passwd",
                "root:x:0:0:root:/root:/bin/bash\nwww:x:33:33::/var/www:/usr/sbin/nologin\n\
                 ann:x:1000:1000:Ann,,,:/home/ann:/bin/zsh\nbroken\nbad:x:a:b:c:d:e\n+nis::::::\n",
            )
            .file(
                "/etc/group",
                "root:x:0:\nann:x:1000:\nsudo:x:27:ann,root\nwww:x:33:ann\n",
            )
            .file(
                "/etc/shadow",
                "root:!:1::::::\nann:$6$salt$hash:1::::::\nwww:*:1::::::\n",
            )
            .build();
        let (users, bad) = read(&source).unwrap();
        assert_eq!(bad, 2);
        let ann = users.iter().find(|u| u.name == "ann").unwrap();
        assert_eq!(ann.groups, ["ann", "sudo", "www"]);
        assert_eq!((ann.login, ann.password), (true, Some(true)));
        assert_eq!((users[0].login, users[0].password), (true, Some(false)));
        assert_eq!((users[1].login, users[1].password), (false, Some(false)));
        assert!(!format!("{users:?}").contains("hash"));
    }
}
