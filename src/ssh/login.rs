//! Logging in: keys of the agent, key files, keyboard-interactive, password, in the order of ssh(1).
//!
//! Secrets stand in memory that is overwritten when it is given up. The copies that the ssh2 crate makes on its way to libssh2
//! are not under this module's control.

mod identities;

use super::connect::Wire;
use super::session::Options;
use super::settings::Settings;
use super::transport::lost;
use crate::error::{Error, Escaped, Result};
use identities::{Identity, Source};
use ssh2::{ErrorCode, KeyboardInteractivePrompt, Prompt};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// How long the host may take for one answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Rounds of questions that a host may ask.
const MAX_ROUNDS: u32 = 20;

/// A secret.
pub type Secret = Zeroizing<Vec<u8>>;

/// What the user is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The text, which a host may have chosen.
    pub text: String,
    /// True if the answer may be seen.
    pub echo: bool,
}

/// Asks the user; `None` if there is nobody to ask, or no answer.
pub type Ask = Arc<dyn Fn(&Question) -> Option<Secret> + Send + Sync>;

/// What came of one way to log in.
enum Outcome {
    Done,
    /// The host wants one of these ways too.
    Further(Vec<String>),
    Failed,
}

pub(super) struct Login<'a> {
    wire: &'a Wire,
    settings: &'a Settings,
    options: &'a Options,
    /// The host is the one that the user named, and not one between.
    is_target: bool,
    tried: Vec<String>,
    /// What the host allows now.
    allowed: Vec<String>,
    password_used: bool,
    /// A way was left out because there is nobody to ask.
    unasked: bool,
}

impl<'a> Login<'a> {
    pub(super) fn new(wire: &'a Wire, settings: &'a Settings, options: &'a Options, is_target: bool) -> Self {
        Self {
            wire,
            settings,
            options,
            is_target,
            tried: Vec::new(),
            allowed: Vec::new(),
            password_used: false,
            unasked: false,
        }
    }

    pub(super) fn run(mut self) -> Result<()> {
        let Some(allowed) = self.methods()? else {
            return Ok(());
        };
        self.allowed = allowed;
        if let Ok(Some(banner)) = self.wire.session.userauth_banner() {
            for line in banner.lines().take(100) {
                (self.options.note)(line);
            }
        }
        let mut used: Vec<&str> = Vec::new();
        loop {
            let next = self
                .settings
                .authentications
                .iter()
                .map(String::as_str)
                .find(|way| self.allowed.iter().any(|a| a == way) && !used.contains(way));
            let Some(way) = next else {
                return Err(self.failed());
            };
            used.push(way);
            let outcome = match way {
                "publickey" => self.keys()?,
                "keyboard-interactive" => self.questions()?,
                "password" => self.password()?,
                _ => Outcome::Failed,
            };
            match outcome {
                Outcome::Done => return Ok(()),
                Outcome::Further(allowed) => {
                    (self.options.note)(&format!(
                        "{way} is accepted, the host asks for {} too",
                        allowed.join(", ")
                    ));
                    self.tried.push(format!("{way} (accepted, but not enough)"));
                    self.allowed = allowed;
                }
                Outcome::Failed => {}
            }
        }
    }

    /// The error of a login that came to nothing.
    fn failed(&self) -> Error {
        let tried = match self.tried.as_slice() {
            [] => "nothing could be tried".to_owned(),
            tried => format!("tried {}", tried.join("; ")),
        };
        let text = format!(
            "{}: the host does not let {} in: {tried}; it allows {}",
            self.wire.name,
            self.settings.user,
            Escaped(self.allowed.join(", ").as_bytes())
        );
        let allows = |way: &str| self.allowed.iter().any(|a| a == way);
        let hint = if self.unasked {
            "nobody can be asked here: give --password-stdin, or --key-passphrase-file FILE, or load the key into an ssh-agent"
        } else if allows("publickey") && !self.tried.iter().any(|t| t.contains("key ")) {
            "name a key with --identity FILE, or load one into an ssh-agent"
        } else if allows("publickey") {
            "put the public key into the user's ~/.ssh/authorized_keys on the host, or name another with --identity FILE"
        } else if allows("password") || allows("keyboard-interactive") {
            "check the user's name and the password"
        } else {
            "--rsh ssh connects with the system's own client, which knows further ways"
        };
        Error::refused(text).hint(hint)
    }

    /// The error of a connection that ended meanwhile.
    fn ended(&self, error: &ssh2::Error) -> Error {
        let tried = match self.tried.as_slice() {
            [] => String::new(),
            tried => format!(" (tried {})", tried.join("; ")),
        };
        lost(format!(
            "{} ended the connection during the login: {}{tried}",
            self.wire.name,
            error.message()
        ))
        .hint("after too many keys a host hangs up: choose one with --identity FILE and IdentitiesOnly in the ssh configuration")
    }

    fn slow(&self) -> Error {
        lost(format!(
            "{} did not answer within {} s during the login",
            self.wire.name,
            ANSWER.as_secs()
        ))
        .hint("check the host's load, its name service and its authentication services")
    }

    /// Calls libssh2 until the host has answered.
    fn call<T>(&self, call: impl FnMut() -> Result<T, ssh2::Error>) -> Result<Result<T, ssh2::Error>> {
        let until = Instant::now() + ANSWER;
        self.call_until(&|| until, call)
    }

    fn call_until<T>(
        &self,
        until: &dyn Fn() -> Instant,
        call: impl FnMut() -> Result<T, ssh2::Error>,
    ) -> Result<Result<T, ssh2::Error>> {
        match self.wire.drive(until, call) {
            None => Err(self.slow()),
            Some(Err(e)) if is_over(&e) => Err(self.ended(&e)),
            Some(done) => Ok(done),
        }
    }

    /// What the host allows; `None` if it lets the user in without more.
    fn methods(&self) -> Result<Option<Vec<String>>> {
        let user = &self.settings.user;
        // The crate panics on a list that is not UTF-8, which a host may send.
        let list = || {
            let session = &self.wire.session;
            catch_unwind(AssertUnwindSafe(|| session.auth_methods(user).map(str::to_owned)))
                .unwrap_or_else(|_| Ok("\u{fffd}".to_owned()))
        };
        let list = self.call(list)?;
        if self.wire.session.authenticated() {
            return Ok(None);
        }
        match list {
            Ok(list) => Ok(Some(
                list.split(',').take(64).map(|w| w.trim().to_owned()).collect(),
            )),
            Err(e) => Err(lost(format!(
                "{}: asking how to log in: {}",
                self.wire.name,
                e.message()
            ))),
        }
    }

    /// After a step that was not the last one or was wrong: which it was.
    fn after(&self) -> Result<Outcome> {
        match self.methods()? {
            None => Ok(Outcome::Done),
            Some(allowed) if allowed == self.allowed => Ok(Outcome::Failed),
            Some(allowed) => Ok(Outcome::Further(allowed)),
        }
    }

    fn keys(&mut self) -> Result<Outcome> {
        // A host between has the keys of its own configuration.
        let named = if self.is_target {
            self.options.identities.as_slice()
        } else {
            &[]
        };
        let found = identities::find(&self.wire.session, self.settings, named, &self.options.place)?;
        for remark in found.remarks {
            (self.options.note)(&remark);
            self.tried.push(remark);
        }
        let mut agent = found.agent;
        for identity in &found.identities {
            let result = match &identity.source {
                Source::Agent(key) => match agent.as_mut() {
                    Some(agent) => self.call(|| agent.userauth(&self.settings.user, key))?,
                    None => continue,
                },
                Source::File { .. } => match self.key_file(identity)? {
                    Some(result) => result,
                    None => continue,
                },
            };
            match result {
                Ok(()) => {
                    (self.options.note)(&format!("logged in with {}", identity.name));
                    return Ok(Outcome::Done);
                }
                Err(e) => {
                    (self.options.note)(&format!("{}: {}", identity.name, e.message()));
                    let why = match e.code() {
                        ErrorCode::Session(-18) => "not accepted".to_owned(),
                        // After the host said that it knows the key: a second step may be wanted.
                        ErrorCode::Session(-19) if e.message().starts_with("Invalid signature") => {
                            match self.after()? {
                                Outcome::Failed => "not accepted".to_owned(),
                                other => return Ok(other),
                            }
                        }
                        _ => e.message().to_owned(),
                    };
                    self.tried.push(format!("{} ({why})", identity.name));
                }
            }
        }
        Ok(Outcome::Failed)
    }

    /// Tries one key file; `None` if it could not be tried, which is said then.
    fn key_file(&mut self, identity: &Identity) -> Result<Option<Result<(), ssh2::Error>>> {
        let Source::File {
            path,
            text,
            encrypted,
            public,
        } = &identity.source
        else {
            return Ok(None);
        };
        let user = &self.settings.user;
        let session = &self.wire.session;
        let attempt = |passphrase: &str| {
            session.userauth_pubkey_memory(user, public.as_deref(), text, Some(passphrase))
        };
        if !encrypted {
            return self.call(|| attempt("")).map(Some);
        }
        // The host says first whether it would take the key, so that nobody is asked in vain.
        if public.is_some() {
            match self.call(|| attempt(""))? {
                Err(e) if e.code() == ErrorCode::Session(-18) => return Ok(Some(Err(e))),
                Ok(()) => return Ok(Some(Ok(()))),
                Err(_) => {}
            }
        }
        let question = Question {
            text: format!("passphrase for the key {}", path.display()),
            echo: false,
        };
        for turn in 0..self.settings.prompts.max(1) {
            let given = if turn == 0 {
                self.options.key_passphrase.clone()
            } else {
                None
            };
            let is_given = given.is_some();
            let given = given.or_else(|| {
                let may_ask =
                    self.settings.prompts > 0 && (turn == 0 || self.options.key_passphrase.is_none());
                may_ask.then(|| (self.options.ask)(&question)).flatten()
            });
            let Some(passphrase) = given else {
                if turn == 0 {
                    self.unasked = true;
                    self.tried
                        .push(format!("{} (its passphrase is not known)", identity.name));
                    return Ok(None);
                }
                break;
            };
            let Ok(passphrase) = std::str::from_utf8(&passphrase) else {
                self.tried
                    .push(format!("{} (the passphrase is not UTF-8)", identity.name));
                return Ok(None);
            };
            let result = self.call(|| attempt(passphrase))?;
            let wrong = match &result {
                Ok(()) => false,
                Err(e) => {
                    !matches!(e.code(), ErrorCode::Session(-18))
                        && !e.message().starts_with("Invalid signature")
                }
            };
            if !wrong {
                return Ok(Some(result));
            }
            if is_given {
                break;
            }
        }
        self.tried.push(format!("{} (wrong passphrase)", identity.name));
        Ok(None)
    }

    /// The password that was given, once.
    fn given_password(&mut self) -> Option<Secret> {
        if self.password_used || !self.is_target {
            return None;
        }
        self.password_used = true;
        self.options.password.clone()
    }

    fn password(&mut self) -> Result<Outcome> {
        let given = self.is_target && self.options.password.is_some();
        let question = Question {
            text: format!("password of {}", self.wire.name),
            echo: false,
        };
        let mut tried = false;
        for _ in 0..self.settings.prompts.max(u32::from(given)) {
            // A password that was right for the questions of another way is right here too.
            let secret = if given && !tried {
                self.options.password.clone()
            } else if given {
                None
            } else {
                (self.options.ask)(&question)
            };
            let Some(secret) = secret else {
                break;
            };
            tried = true;
            let Ok(text) = std::str::from_utf8(&secret) else {
                return Err(Error::usage("the password is not UTF-8"));
            };
            match self.call(|| self.wire.session.userauth_password(&self.settings.user, text))? {
                Ok(()) => return Ok(Outcome::Done),
                Err(e) if e.code() == ErrorCode::Session(-15) => {
                    return Err(
                        Error::refused(format!("{}: the password has expired", self.wire.name))
                            .hint("log in with ssh once and change it"),
                    );
                }
                Err(_) => match self.after()? {
                    Outcome::Failed => {}
                    other => return Ok(other),
                },
            }
        }
        self.tried.push(match tried {
            true => "password (wrong)".to_owned(),
            false => {
                self.unasked = true;
                "password (none given)".to_owned()
            }
        });
        Ok(Outcome::Failed)
    }

    fn questions(&mut self) -> Result<Outcome> {
        let given = self.is_target && self.options.password.is_some();
        let mut tried = false;
        for _ in 0..self.settings.prompts.max(u32::from(given)) {
            let until = Cell::new(Instant::now() + ANSWER);
            let mut asker = Asker {
                until: &until,
                name: &self.wire.name,
                given: self.given_password(),
                only_given: given,
                ask: &self.options.ask,
                asked: 0,
                silent: false,
            };
            let result = self.call_until(&|| until.get(), || {
                self.wire
                    .session
                    .userauth_keyboard_interactive(&self.settings.user, &mut asker)
            })?;
            let silent = asker.silent;
            tried |= asker.asked > 0 && !silent;
            match result {
                Ok(()) => return Ok(Outcome::Done),
                Err(e) => {
                    (self.options.note)(&format!("keyboard-interactive: {}", e.message()));
                    match self.after()? {
                        Outcome::Failed if silent || given => break,
                        Outcome::Failed => {}
                        other => return Ok(other),
                    }
                }
            }
        }
        self.tried.push(match tried {
            true => "keyboard-interactive (wrong)".to_owned(),
            false => {
                self.unasked = true;
                "keyboard-interactive (no answer given)".to_owned()
            }
        });
        Ok(Outcome::Failed)
    }
}

/// True if the connection cannot be used any more.
fn is_over(error: &ssh2::Error) -> bool {
    // Socket: send, timeout, disconnect, receive; and what breaks the protocol.
    matches!(
        error.code(),
        ErrorCode::Session(-4 | -7 | -9 | -12 | -13 | -14 | -30 | -41 | -43)
    ) || error.message().starts_with("Waiting for")
        || error.message().contains("Would block waiting")
}

/// Answers the questions of a host.
struct Asker<'a> {
    until: &'a Cell<Instant>,
    name: &'a str,
    given: Option<Secret>,
    only_given: bool,
    ask: &'a Ask,
    asked: u32,
    silent: bool,
}

impl KeyboardInteractivePrompt for Asker<'_> {
    fn prompt<'b>(&mut self, _user: &str, instructions: &str, prompts: &[Prompt<'b>]) -> Vec<String> {
        let mut answers = Vec::new();
        for prompt in prompts {
            self.asked = self.asked.saturating_add(1);
            let mut answer = None;
            if self.asked <= MAX_ROUNDS {
                // The given password answers the first question that wants something secret.
                if !prompt.echo {
                    answer = self.given.take();
                }
                if answer.is_none() && !self.only_given {
                    let text = [instructions.trim(), prompt.text.trim().trim_end_matches(':')]
                        .into_iter()
                        .filter(|t| !t.is_empty())
                        .collect::<Vec<_>>()
                        .join(" ");
                    answer = (self.ask)(&Question {
                        text: format!("{}: {}", self.name, text.chars().take(500).collect::<String>()),
                        echo: prompt.echo,
                    });
                }
            }
            self.silent |= answer.is_none();
            let text = answer.and_then(|a| std::str::from_utf8(&a).map(str::to_owned).ok());
            answers.push(text.unwrap_or_default());
        }
        // The time that the user took is not the host's.
        self.until.set(Instant::now() + ANSWER);
        answers
    }
}
