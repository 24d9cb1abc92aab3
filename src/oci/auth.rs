//! Who we are to a registry: challenges, credentials, tokens (distribution's token authentication specification,
//! RFC 9110 section 11).

use crate::error::{Error, Escaped, Result};
use docker_credential::{CredentialRetrievalError, DockerCredential};
use std::path::Path;

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// Lower case: `bearer`, `basic`.
    pub(crate) scheme: String,
    /// Keys in lower case.
    pub(crate) parameters: Vec<(String, String)>,
}

impl Challenge {
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }
}

/// The challenges of one header value. What cannot be understood ends the list.
pub(crate) fn challenges(header: &str) -> Vec<Challenge> {
    let mut out: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let Some((word, behind)) = rest.split_at_checked(end).filter(|(word, _)| !word.is_empty()) else {
            return out;
        };
        let after = behind.trim_start_matches([' ', '\t']);
        if let Some(value) = after.strip_prefix('=') {
            let (value, behind) = value_of(value.trim_start_matches([' ', '\t']));
            match out.last_mut() {
                Some(challenge) => challenge.parameters.push((word.to_ascii_lowercase(), value)),
                None => return out,
            }
            rest = behind;
        } else {
            out.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: Vec::new(),
            });
            rest = after;
        }
    }
}

/// A token or a quoted string at the front, and what is behind it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, behind) = text.split_at_checked(end).unwrap_or((text, ""));
        return (value.to_owned(), behind);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// What a user has for a registry.
#[derive(Clone)]
pub(crate) enum Credential {
    /// User and password.
    Password(String, String),
    /// An OAuth 2 refresh token.
    Identity(String),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential")
    }
}

/// The credential for `repository` of `registry`: of `file` if one is given, else as podman and docker keep it (podman's
/// `auth.json`, docker's `config.json`, their credential helpers). `None` if there is none.
///
/// # Errors
/// [`Error::Usage`] if a file or a helper that is configured does not work. No secret is ever part of the message.
pub(crate) fn credential(
    registry: &str,
    repository: &str,
    file: Option<&Path>,
) -> Result<Option<Credential>> {
    // Docker keeps its own registry under the address of the interface before this one.
    let server = match registry {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    if let Some(path) = file {
        let open =
            || std::fs::File::open(path).map_err(|e| Error::io(format!("opening {}", path.display()), e));
        for key in keys(registry, repository, server) {
            let found = docker_credential::get_credential_from_reader(open()?, &key);
            if let Some(found) = judge(found, registry)? {
                return Ok(Some(found));
            }
        }
        return Ok(None);
    }
    for key in keys(registry, repository, server) {
        if let Some(found) = judge(docker_credential::get_podman_credential(&key), registry)? {
            return Ok(Some(found));
        }
    }
    judge(docker_credential::get_credential(server), registry)
}

/// The keys under which podman may keep a credential: the repository, its namespaces, the registry (containers-auth.json).
fn keys(registry: &str, repository: &str, server: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = format!("{registry}/{repository}");
    while let Some((parent, _)) = path.rsplit_once('/') {
        let parent = parent.to_owned();
        keys.push(std::mem::replace(&mut path, parent));
    }
    keys.push(server.to_owned());
    if server != registry {
        keys.push(registry.to_owned());
    }
    keys
}

fn judge(
    found: std::result::Result<DockerCredential, CredentialRetrievalError>,
    registry: &str,
) -> Result<Option<Credential>> {
    use CredentialRetrievalError as E;
    let broken = |what: String| {
        Err(
            Error::usage(format!("looking for the credentials of {registry}: {what}")).hint(
                "log in again with `docker login` or `podman login`, or name another file of credentials",
            ),
        )
    };
    match found {
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credential::Identity(token))),
        Ok(DockerCredential::UsernamePassword(user, password)) if user.is_empty() && password.is_empty() => {
            Ok(None)
        }
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(Some(Credential::Password(user, password)))
        }
        Err(E::NoCredentialConfigured | E::ConfigNotFound | E::ConfigReadError) => Ok(None),
        // The words of the helpers' protocol for "there is none".
        Err(E::HelperFailure { stdout, stderr, .. })
            if format!("{stdout}{stderr}").contains("credentials not found") =>
        {
            Ok(None)
        }
        Err(E::HelperFailure { helper, .. }) => broken(format!("{} failed", Escaped(helper.as_bytes()))),
        Err(E::HelperCommunicationError) => broken("the credential helper does not run".to_owned()),
        Err(E::MalformedHelperResponse) => broken("the credential helper's answer is broken".to_owned()),
        Err(E::CredentialDecodingError | E::CredentialMismatchError) => {
            broken("the stored entry is broken".to_owned())
        }
    }
}

/// The token in the answer of a token server.
pub(crate) fn token(answer: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    answer.token.or(answer.access_token).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_taken_apart() {
        let c = challenges(
            r#"Bearer realm="https://auth.example/token?a=b,c",service="registry \"x\"", scope=repository:a/b:pull"#,
        );
        assert_eq!(c.len(), 1);
        assert_eq!(c[0].scheme, "bearer");
        assert_eq!(c[0].get("realm"), Some("https://auth.example/token?a=b,c"));
        assert_eq!(c[0].get("service"), Some("registry \"x\""));
        assert_eq!(c[0].get("scope"), Some("repository:a/b:pull"));
        let c = challenges(r#"Negotiate, Basic realm="a b" , BEARER realm=x"#);
        let schemes: Vec<&str> = c.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(c[1].get("realm"), Some("a b"));
        for odd in [
            "",
            ",,,",
            "=",
            "a=b",
            "Bearer realm=\"open",
            "Bearer \\",
            "Bearer =\u{e9}\"",
            "\"\"",
        ] {
            let _ = challenges(odd);
        }
    }

    #[test]
    fn credentials_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        // dTpw: u:p, bjpw: n:p
        std::fs::write(&path, r#"{"auths":{"quay.io":{"auth":"dTpw"},"quay.io/ns":{"auth":"bjpw"},"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#).unwrap();
        let user = |registry, repository| match credential(registry, repository, Some(&path)).unwrap() {
            Some(Credential::Password(user, password)) => {
                assert_eq!(password, "p");
                user
            }
            _ => String::new(),
        };
        assert_eq!(user("quay.io", "other/x"), "u");
        assert_eq!(user("quay.io", "ns/x"), "n");
        assert_eq!(user("docker.io", "library/debian"), "u");
        assert_eq!(user("ghcr.io", "a/b"), "");
        assert!(credential("quay.io", "x", Some(&dir.path().join("none"))).is_err());
        std::fs::write(&path, r#"{"credHelpers":{"quay.io":"does-not-exist"}}"#).unwrap();
        let e = credential("quay.io", "x", Some(&path)).unwrap_err();
        assert_eq!(e.code(), crate::error::code::USAGE);
    }

    #[test]
    fn tokens() {
        assert_eq!(token(br#"{"token":"a"}"#).as_deref(), Some("a"));
        assert_eq!(
            token(br#"{"access_token":"b","expires_in":1}"#).as_deref(),
            Some("b")
        );
        assert_eq!(token(br#"{"token":""}"#), None);
        assert_eq!(token(b"x"), None);
    }
}
