//! One repository of a registry over HTTP: addresses, tries, challenges, errors.
//!
//! The HTTP client is used without a registry library between: those at hand read manifests, tokens and error pages of any
//! length into memory. Here everything has a bound.

use super::auth::{self, Challenge, Credential};
use super::{OpenOptions, RegistryName};
use crate::error::{Error, Escaped, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(8);
/// How long a server may say nothing.
const SILENCE: Duration = Duration::from_secs(30);
/// Within this time a document must end.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// The most tries of one request, and of a transfer that does not get on.
pub(crate) const TRIES: u32 = 5;
/// Before the second try; it doubles each time.
pub(crate) const BACKOFF: Duration = Duration::from_millis(250);
/// The longest wait a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// The most bytes of a token server's answer, and of an error page.
const MAX_ANSWER: usize = 256 << 10;
/// The most redirects of one request.
const MAX_REDIRECTS: usize = 5;

/// A repository of a registry.
pub(crate) struct Http {
    name: RegistryName,
    insecure: bool,
    auth_file: Option<PathBuf>,
    client: reqwest::Client,
    /// For token servers: follows no redirect, so that a password goes nowhere but where it was sent.
    token_client: reqwest::Client,
    /// `scheme://host/`, once it is known.
    base: Mutex<Option<Url>>,
    /// The `Authorization` header, once one is needed.
    authorization: Mutex<Option<HeaderValue>>,
}

/// A lock that a panic elsewhere does not spoil.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// True for names and addresses of this machine.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What every client keeps to: times, and no `Referer`.
fn builder(loopback: bool) -> reqwest::ClientBuilder {
    // Somebody may have installed a provider before: that one serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .user_agent(concat!("vm2k/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .referer(false);
    match loopback {
        true => builder.no_proxy(),
        false => builder,
    }
}

fn started(builder: reqwest::ClientBuilder) -> Result<reqwest::Client> {
    builder
        .build()
        .map_err(|e| Error::io("starting the HTTP client", std::io::Error::other(e.without_url())))
}

/// A client that follows a few redirects, and none from https to http. `loopback`: it speaks with this machine only, and
/// needs no proxy.
///
/// # Errors
/// [`Error::Io`] if it cannot be started.
pub(crate) fn client(loopback: bool) -> Result<reqwest::Client> {
    // reqwest itself drops `Authorization` when scheme, host or port change.
    let redirects = reqwest::redirect::Policy::custom(|attempt| {
        let was_https = attempt.previous().iter().any(|url| url.scheme() == "https");
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else if was_https && attempt.url().scheme() != "https" {
            attempt.error("a redirect from https to http")
        } else {
            attempt.follow()
        }
    });
    started(builder(loopback).redirect(redirects))
}

impl Http {
    /// A client for the repository of `name`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Io`] if the client cannot be started.
    pub(crate) fn new(name: &RegistryName, options: &OpenOptions) -> Result<Self> {
        let loopback = is_loopback(&name.registry);
        Ok(Self {
            name: name.clone(),
            insecure: options.insecure,
            auth_file: options.auth_file.clone(),
            client: client(loopback)?,
            token_client: started(builder(loopback).redirect(reqwest::redirect::Policy::none()))?,
            base: Mutex::new(None),
            authorization: Mutex::new(None),
        })
    }

    fn url(&self, base: &Url, rest: &str) -> Result<Url> {
        base.join(&format!("v2/{}/{rest}", self.name.repository))
            .map_err(|_| Error::usage(format!("{} makes no address", self.name)))
    }

    /// `https://HOST/`; for this machine and where the user allows it `http://HOST/` if nobody speaks TLS there.
    async fn base(&self) -> Result<Url> {
        if let Some(base) = &*lock(&self.base) {
            return Ok(base.clone());
        }
        let host = match self.name.registry.as_str() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            host => host,
        };
        let address = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/")).map_err(|_| {
                Error::usage(format!(
                    "{:?} is not the address of a registry",
                    self.name.registry
                ))
            })
        };
        let mut base = address("https")?;
        if self.insecure || is_loopback(&self.name.registry) {
            let probe = base
                .join("v2/")
                .map_err(|_| Error::usage(format!("{host} makes no address")))?;
            let speaks_tls = self.token_client.get(probe).send().await;
            if speaks_tls.is_err_and(|e| !e.is_timeout()) {
                base = address("http")?;
            }
        }
        *lock(&self.base) = Some(base.clone());
        Ok(base)
    }

    /// The error for a transfer that failed.
    pub(crate) fn network(&self, what: &str, e: impl Into<Chain>) -> Error {
        Error::network(format!("{what} of {}", self.name), e.into()).hint(
            "check the network and the name, or name a copy on this machine as oci:DIR or docker-archive:FILE; \
             --offline uses what was fetched before",
        )
    }

    /// One GET, with as many tries as make sense. The answer is 200 or 206.
    pub(crate) async fn get(&self, what: &str, rest: &str, headers: HeaderMap) -> Result<Response> {
        let base = self.base().await?;
        let url = self.url(&base, rest)?;
        let mut wait = BACKOFF;
        let mut asked = false;
        let mut tries = 1;
        loop {
            let mut request = self.client.get(url.clone()).headers(headers.clone());
            let authorization = lock(&self.authorization).clone();
            if let Some(value) = &authorization {
                request = request.header(AUTHORIZATION, value);
            }
            let mut pause = wait;
            let error = match request.send().await {
                Ok(answer) => {
                    let status = answer.status();
                    match status.as_u16() {
                        200 | 206 => return Ok(answer),
                        401 if !asked => match self.authorize(&base, answer, authorization).await {
                            Ok(()) => {
                                asked = true;
                                continue;
                            }
                            Err(e) if e.code() == crate::error::code::NETWORK => e,
                            Err(e) => return Err(e),
                        },
                        408 | 429 | 500 | 502 | 503 | 504 => {
                            if let Some(seconds) = retry_after(answer.headers()) {
                                pause = seconds.min(MAX_WAIT);
                            }
                            self.refused(what, answer).await
                        }
                        _ => return Err(self.refused(what, answer).await),
                    }
                }
                // A redirect that is refused, or a host that does not answer at all, will not be better in a second.
                Err(e) if e.is_redirect() || (e.is_timeout() && e.is_connect()) => {
                    return Err(self.network(what, e));
                }
                Err(e) => self.network(what, e),
            };
            if tries >= TRIES {
                return Err(error);
            }
            tries += 1;
            tokio::time::sleep(pause).await;
            wait *= 2;
        }
    }

    /// The error for an answer that is no success.
    async fn refused(&self, what: &str, answer: Response) -> Error {
        let status = answer.status();
        let page = limited(answer, MAX_ANSWER).await.unwrap_or_default();
        let words = error_words(&page);
        let what = format!("{what} of {}", self.name);
        let io = |kind, text: String| Error::io(what.clone(), std::io::Error::new(kind, text));
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => io(
                std::io::ErrorKind::PermissionDenied,
                format!("the registry wants a login, or there is no such image ({status}{words})"),
            )
            .hint(format!(
                "log in with `docker login {0}` or `podman login {0}`, and check the name",
                self.name.registry
            )),
            StatusCode::NOT_FOUND => io(
                std::io::ErrorKind::NotFound,
                format!("the registry has no such image ({status}{words})"),
            )
            .hint("check the name and the tag"),
            _ => Error::Network {
                what: format!("{what}: the registry answers {status}{words}"),
                source: None,
            },
        }
    }

    /// Gets what the challenges of a 401 ask for. `had` is what was sent already.
    async fn authorize(&self, base: &Url, answer: Response, had: Option<HeaderValue>) -> Result<()> {
        let all: Vec<Challenge> = answer
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .take(16)
            .filter_map(|v| v.to_str().ok())
            .flat_map(auth::challenges)
            .collect();
        // A redirect may have led elsewhere: only the registry's own challenge is answered.
        let own = answer.url().origin() == base.origin();
        let credential = auth::credential(
            &self.name.registry,
            &self.name.repository,
            self.auth_file.as_deref(),
        )?;
        let bearer = all.iter().find(|c| own && c.scheme == "bearer");
        let basic = all.iter().any(|c| own && c.scheme == "basic");
        let value = match (bearer, credential) {
            (Some(challenge), credential) => {
                format!("Bearer {}", self.token(base, challenge, credential).await?)
            }
            (None, Some(Credential::Password(user, password))) if basic && had.is_none() => {
                format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
            }
            _ => return Err(self.refused("reading the manifest", answer).await),
        };
        let mut value = HeaderValue::from_str(&value)
            .map_err(|_| Error::corrupt(format!("the token for {} is no HTTP header", self.name), 0))?;
        value.set_sensitive(true);
        *lock(&self.authorization) = Some(value);
        Ok(())
    }

    /// A token for pulling from this repository, from the realm of the challenge.
    async fn token(
        &self,
        base: &Url,
        challenge: &Challenge,
        credential: Option<Credential>,
    ) -> Result<String> {
        let what = format!("getting a token for {}", self.name);
        let bad = |why: &str| Error::corrupt(format!("{what}: {why}"), 0);
        let realm = challenge
            .get("realm")
            .ok_or_else(|| bad("the challenge names no realm"))?;
        let mut url = Url::parse(realm).map_err(|_| bad("the realm is no address"))?;
        if url.scheme() != "https" && !(url.scheme() == "http" && base.scheme() == "http") {
            return Err(Error::refused(format!(
                "{what}: its realm is not reached by https"
            )));
        }
        let scope = format!("repository:{}:pull", self.name.repository);
        let service = challenge.get("service");
        let request = match credential {
            Some(Credential::Identity(token)) => {
                // OAuth 2 as docker speaks it (distribution's oauth.md).
                let mut form = Url::parse("form:?").map_err(|_| bad("no form"))?;
                form.query_pairs_mut()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("refresh_token", &token)
                    .append_pair("client_id", "vm2k")
                    .append_pair("scope", &scope)
                    .append_pair("service", service.unwrap_or_default());
                self.token_client
                    .post(url)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or_default().to_owned())
            }
            credential => {
                url.query_pairs_mut().append_pair("scope", &scope);
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                match credential {
                    Some(Credential::Password(user, password)) => {
                        url.query_pairs_mut().append_pair("account", &user);
                        self.token_client.get(url).basic_auth(user, Some(password))
                    }
                    _ => self.token_client.get(url),
                }
            }
        };
        let answer = request
            .send()
            .await
            .map_err(|e| self.network("getting a token for pulling", e))?;
        if !answer.status().is_success() {
            return Err(self.refused("getting a token for pulling", answer).await);
        }
        let body = limited(answer, MAX_ANSWER)
            .await
            .map_err(|e| self.network("getting a token for pulling", e))?;
        auth::token(&body).ok_or_else(|| bad("the answer holds no token"))
    }
}

/// The body of an answer, cut at `limit` bytes.
pub(crate) async fn limited(mut answer: Response, limit: usize) -> std::result::Result<Vec<u8>, Chain> {
    let whole = async {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(Chain::of)? {
            let room = limit.saturating_sub(body.len());
            body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
            if body.len() >= limit {
                break;
            }
        }
        Ok(body)
    };
    let late = |_| Chain(format!("no end after {} seconds", WINDOW.as_secs()));
    tokio::time::timeout(WINDOW, whole).await.map_err(late)?
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What a registry's error document says (distribution-spec, "Error Codes"), made safe for a terminal.
fn error_words(page: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Page {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(page) = serde_json::from_slice::<Page>(page) else {
        return String::new();
    };
    let words = page.errors.iter().take(3).map(|e| {
        let text: String = format!("{} {}", e.code, e.message).chars().take(200).collect();
        format!(", {}", Escaped(text.trim().as_bytes()))
    });
    words.collect()
}

/// An error with its causes in one text: the HTTP client's own text leaves out what went wrong.
#[derive(Debug)]
pub(crate) struct Chain(String);

impl Chain {
    fn of(e: reqwest::Error) -> Self {
        // The address may be signed, and is then a secret itself.
        let e = e.without_url();
        let mut text = e.to_string();
        let mut next = std::error::Error::source(&e);
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            next = cause.source();
        }
        Self(text)
    }
}

impl From<reqwest::Error> for Chain {
    fn from(e: reqwest::Error) -> Self {
        Self::of(e)
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Chain {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine() {
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:5000",
            "[::1]",
        ] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "localhost.example",
            "10.0.0.1:80",
            "example.com:5000",
            "[2001:db8::1]:5000",
            "127.0.0.1.example",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn words_of_a_registry_cannot_reach_the_terminal() {
        let page = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m"}]}"#;
        assert_eq!(error_words(page), ", DENIED no\\u{1b}[31m");
        assert_eq!(error_words(b"<html>"), "");
    }
}
