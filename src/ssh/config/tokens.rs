//! `%` tokens, `~` and `${NAME}` in values (ssh_config(5), TOKENS and ENVIRONMENT VARIABLES).

use crate::bytes::hex;
use crate::ssh::target::Target;
use sha1::{Digest, Sha1};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Looks up a variable of the environment.
pub type Variables = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Who and where the user is: what a configuration may refer to.
#[derive(Clone)]
pub struct Place {
    /// The home directory.
    pub home: PathBuf,
    /// The name of the local user.
    pub user: String,
    /// Its number.
    pub uid: u32,
    /// The name of this machine.
    pub machine: String,
    /// Variables of the environment.
    pub variable: Variables,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("home", &self.home)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Place {
    /// Of this process.
    pub fn here() -> Self {
        let uid = rustix::process::getuid().as_raw();
        let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let row = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|row| row.get(2).is_some_and(|n| *n == uid.to_string()));
        let field = |n: usize| {
            let text = row.as_ref()?.get(n)?;
            (!text.is_empty()).then(|| (*text).to_owned())
        };
        let user = field(0)
            .or_else(|| variable("LOGNAME"))
            .or_else(|| variable("USER"))
            .unwrap_or_else(|| uid.to_string());
        let home = std::env::home_dir().or_else(|| field(5).map(PathBuf::from));
        Self {
            home: home.unwrap_or_else(|| "/".into()),
            user,
            uid,
            machine: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            variable: Arc::new(variable),
        }
    }

    /// The tokens of a connection.
    pub(super) fn tokens(
        &self,
        target: &Target,
        host_name: &str,
        port: u16,
        user: &str,
        alias: Option<&str>,
        jump: Option<&str>,
    ) -> Vec<(char, String)> {
        let short = self.machine.split('.').next().unwrap_or_default();
        let jump = jump.unwrap_or_default();
        let mut hasher = Sha1::new();
        for part in [self.machine.as_str(), host_name, &port.to_string(), user, jump] {
            hasher.update(part.as_bytes());
        }
        vec![
            ('C', hex(&hasher.finalize())),
            ('d', self.home.display().to_string()),
            ('h', host_name.to_owned()),
            ('i', self.uid.to_string()),
            ('j', jump.to_owned()),
            ('k', alias.unwrap_or(&target.host).to_owned()),
            ('L', short.to_owned()),
            ('l', self.machine.clone()),
            ('n', target.host.clone()),
            ('p', port.to_string()),
            ('r', user.to_owned()),
            ('u', self.user.clone()),
        ]
    }
}

/// `text` with its tokens replaced; `None` if one is unknown.
pub(super) fn expand(text: &str, tokens: &[(char, String)]) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next()? {
            '%' => out.push('%'),
            token => out.push_str(tokens.iter().find(|(name, _)| *name == token).map(|(_, v)| v)?),
        }
    }
    Some(out)
}

/// `text` as the path of a file: tokens, variables and `~` replaced.
pub(super) fn expand_path(text: &str, tokens: &[(char, String)], place: &Place) -> Option<PathBuf> {
    let mut out = String::new();
    let mut rest = text;
    // Variables first, so that what they hold is not looked through for tokens.
    let mut parts = Vec::new();
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}')?;
        parts.push((before, Some((place.variable)(name)?)));
        rest = after;
    }
    parts.push((rest, None));
    for (plain, value) in parts {
        out.push_str(&expand(plain, tokens)?);
        out.push_str(&value.unwrap_or_default());
    }
    Some(home(&out, place))
}

/// `~` and `~/x` below the home directory. Another user's home is not looked up: the path then leads nowhere.
pub(super) fn home(text: &str, place: &Place) -> PathBuf {
    match text.strip_prefix('~') {
        Some("") => place.home.clone(),
        Some(rest) => match rest.strip_prefix('/') {
            Some(rest) => place.home.join(rest.trim_start_matches('/')),
            None => Path::new(text).to_owned(),
        },
        None => Path::new(text).to_owned(),
    }
}
