//! How a host is named: `ssh://[user@]host[:port]` or `[user@]host[:port]`.

use crate::error::{Error, Result};
use std::fmt;

/// A host as the user named it. Its configuration says what that means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The user to log in as, if one is named.
    pub user: Option<String>,
    /// The name or address, IPv6 without brackets.
    pub host: String,
    /// The port, if one is named.
    pub port: Option<u16>,
}

impl Target {
    /// Reads `text`.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no host, or the port is none, or the words cannot be a user's or a host's name.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::usage(format!("{text}: {why}")).hint("name a host as ssh://[user@]host[:port]")
        };
        let (rest, uri) = match text.strip_prefix("ssh://") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let rest = match rest.split_once('/') {
            Some((rest, "")) if uri => rest,
            Some(_) => return Err(wrong("a host is named without a path")),
            None => rest,
        };
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        let (host, port) = match rest.strip_prefix('[') {
            Some(inside) => match inside.split_once(']') {
                Some((host, "")) => (host, None),
                Some((host, port)) => match port.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None => return Err(wrong("after ] comes a colon and the port")),
                },
                None => return Err(wrong("[ has no ]")),
            },
            // More than one colon is an address of IPv6 without a port.
            None => match rest.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (rest, None),
            },
        };
        let port = match port {
            None => None,
            Some(port) => match port.parse::<u16>() {
                Ok(number) if number != 0 && !port.starts_with('+') => Some(number),
                _ => return Err(wrong("the port is a number from 1 to 65535")),
            },
        };
        if host.is_empty() {
            return Err(wrong("there is no host"));
        }
        // What another program would take for an option or for a shell's words is no name.
        let odd = |c: char| c.is_control() || c.is_whitespace() || "'`\"$\\;&<>|(){}[]".contains(c);
        if host.starts_with('-') || host.contains(odd) {
            return Err(wrong("that is not the name of a host"));
        }
        if user.is_some_and(|u| u.is_empty() || u.starts_with('-') || u.contains(odd) || u.contains(':')) {
            return Err(wrong("that is not the name of a user"));
        }
        Ok(Self {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match (self.host.contains(':'), self.port) {
            (true, Some(port)) => write!(f, "[{}]:{port}", self.host),
            (true, None) => write!(f, "[{}]", self.host),
            (false, Some(port)) => write!(f, "{}:{port}", self.host),
            (false, None) => f.write_str(&self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_to_name_a_host() {
        let parse = |text| {
            let t = Target::parse(text).unwrap();
            (t.user, t.host, t.port)
        };
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(parse("web1"), (None, "web1".into(), None));
        assert_eq!(parse("root@web1:2222"), (some("root"), "web1".into(), Some(2222)));
        assert_eq!(parse("ssh://web1"), (None, "web1".into(), None));
        assert_eq!(
            parse("ssh://root@web1:22/"),
            (some("root"), "web1".into(), Some(22))
        );
        assert_eq!(parse("[::1]:2222"), (None, "::1".into(), Some(2222)));
        assert_eq!(parse("ssh://a@[fe80::1]"), (some("a"), "fe80::1".into(), None));
        assert_eq!(parse("::1"), (None, "::1".into(), None));
        assert_eq!(parse("me@corp@web1"), (some("me@corp"), "web1".into(), None));
        for text in ["root@web1:2222", "[::1]:22", "a@[::1]", "web1"] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_host() {
        for text in [
            "",
            "@",
            "ssh://",
            "root@",
            "@web1",
            "web1:",
            "web1:0",
            "web1:65536",
            "web1:x",
            "[::1",
            "[::1]22",
            "-oX=y",
            "-l@web1",
            "ssh://web1/srv",
            "a b",
            "web1;id",
            "ssh://user:secret@web1",
            "web1:+22",
        ] {
            let result = Target::parse(text);
            assert!(
                matches!(&result, Err(e) if e.code() == crate::error::code::USAGE),
                "{text}: {result:?}"
            );
        }
    }
}
