//! What a container of the machine runs: the command of its one service, or a shell.

use super::Inventory;
use super::services::Service;
use super::unit;
use crate::error::{Error, Result};

/// What `--service NAME` puts into an image's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceChoice {
    /// Name of the service.
    pub name: String,
    /// The command, as words.
    pub cmd: Vec<String>,
    /// `user` or `user:group`; `None` is root.
    pub user: Option<String>,
    /// The working directory.
    pub working_directory: Option<String>,
    /// `NAME=value`; what looks like a secret is left out.
    pub env: Vec<String>,
    /// What people should know: variables that were left out, a service that goes to the background, ...
    pub notes: Vec<String>,
}

/// The command of an image: that of the machine's only application service if it can be said without a shell, else the
/// machine's shell.
pub fn default_cmd(inventory: &Inventory) -> Vec<String> {
    default_service(inventory).map_or_else(|| vec![inventory.shell.clone()], |choice| choice.cmd)
}

/// The machine's only application service, if there is exactly one and its command can be said without a shell.
pub fn default_service(inventory: &Inventory) -> Option<ServiceChoice> {
    let mut services = inventory.applications();
    match (services.next(), services.next()) {
        (Some(only), None) => choice(only).ok(),
        _ => None,
    }
}

/// The service called `name`, with or without `.service`.
///
/// # Errors
/// [`Error::Usage`] if the machine does not start one of that name, [`Error::Unsupported`] if its command needs
/// something that only its service manager can give.
pub fn service(inventory: &Inventory, name: &str) -> Result<ServiceChoice> {
    let stem = name.strip_suffix(".service").unwrap_or(name);
    let found = inventory.services.iter().find(|s| s.name == stem);
    let service = found.ok_or_else(|| {
        let known: Vec<&str> = inventory.applications().map(|s| s.name.as_str()).collect();
        Error::usage(format!("the machine starts no service {stem:?}")).hint(match known.as_slice() {
            [] => "name a command with the image's own tools: no application service was found".to_owned(),
            known => format!("choose one of: {}", known.join(", ")),
        })
    })?;
    choice(service)
}

fn choice(service: &Service) -> Result<ServiceChoice> {
    let unsupported = |what: &str| Error::unsupported(format!("service {}: {what}", service.name));
    let mut notes = Vec::new();
    let [exec] = service.exec.as_slice() else {
        return Err(unsupported(match service.exec.len() {
            0 => "it has no command",
            _ => "it has several commands",
        }));
    };
    let mut env = Vec::new();
    for (name, value) in &service.environment {
        if looks_secret(name, value) {
            notes.push(format!("variable {name} looks like a secret and was left out"));
        } else if let Some(value) = service.unit.specifiers(value) {
            env.push((name.clone(), value));
        } else {
            notes.push(format!("variable {name} needs systemd and was left out"));
        }
    }
    if !service.environment_files.is_empty() {
        let files = service.environment_files.join(", ");
        notes.push(format!(
            "variables of {files} are not in the image's configuration"
        ));
    }
    let cmd = argv(service, exec, &env).ok_or_else(|| unsupported("its command needs systemd or a shell"))?;
    if matches!(service.kind.as_deref(), Some("forking"))
        || service.manager == "sysv"
        || service.manager == "openrc"
    {
        notes.push("the command goes to the background, which ends a container".to_owned());
    }
    let user = service.user.as_ref().filter(|u| *u != "root");
    let directory = service.working_directory.as_deref();
    Ok(ServiceChoice {
        name: service.name.clone(),
        cmd,
        user: match (user, &service.group) {
            (Some(user), Some(group)) => Some(format!("{user}:{group}")),
            (Some(user), None) => Some(user.clone()),
            (None, _) => None,
        },
        working_directory: directory
            .map(|d| d.strip_prefix('-').unwrap_or(d))
            .filter(|d| d.starts_with('/'))
            .and_then(|d| service.unit.specifiers(d)),
        env: env.into_iter().map(|(k, v)| format!("{k}={v}")).collect(),
        notes,
    })
}

/// The words of `ExecStart=` (systemd.service(5), "Command lines"). `None` if they need more than the unit's own
/// environment and specifiers.
fn argv(service: &Service, exec: &str, env: &[(String, String)]) -> Option<Vec<String>> {
    let mut rest = exec.trim();
    let mut renamed = false;
    let mut expand = true;
    while let Some(prefix) = rest.chars().next().filter(|c| "-@:+!|".contains(*c)) {
        match prefix {
            '@' => renamed = true,
            ':' => expand = false,
            // Runs it through the user's shell.
            '|' => return None,
            _ => {}
        }
        rest = rest.get(1..)?;
    }
    let systemd = service.manager == "systemd";
    if !systemd && rest.contains(['$', '`', '|', '&', ';', '<', '>', '*', '?', '(', ')', '~']) {
        return None;
    }
    let mut words = Vec::new();
    for word in unit::words(rest)? {
        // A lone `;` separates commands.
        if word == ";" {
            return None;
        }
        let word = if systemd {
            service.unit.specifiers(&word)?
        } else {
            word
        };
        if systemd && expand && word.contains('$') {
            words.extend(variables(&word, env)?);
        } else {
            words.push(word);
        }
    }
    if renamed {
        // The second word is what the program is to see as its own name, which an image cannot say.
        if words.len() < 2 {
            return None;
        }
        words.remove(1);
    }
    (!words.is_empty()).then_some(words)
}

/// `$NAME` as a word of its own becomes any number of words, `${NAME}` is replaced inside its word, `$$` is a dollar.
/// `None` if a variable is not in `env`.
fn variables(word: &str, env: &[(String, String)]) -> Option<Vec<String>> {
    let value = |name: &str| env.iter().rev().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
    if let Some(name) = word
        .strip_prefix('$')
        .filter(|n| !n.is_empty() && !n.contains(['$', '{']))
    {
        return unit::words(value(name)?);
    }
    let mut out = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else {
            let (name, after) = after.strip_prefix('{')?.split_once('}')?;
            out.push_str(value(name)?);
            rest = after;
        }
    }
    out.push_str(rest);
    Some(vec![out])
}

/// True for a variable whose name or value says that it is to be kept secret.
pub fn looks_secret(name: &str, value: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let words = [
        "PASS",
        "SECRET",
        "TOKEN",
        "APIKEY",
        "API_KEY",
        "ACCESS_KEY",
        "PRIVATE",
        "CREDENTIAL",
        "AUTH",
        "_KEY",
        "DSN",
        "SALT",
        "COOKIE",
    ];
    let marks = ["-----BEGIN", "AKIA", "ghp_", "glpat-", "xox", "eyJ"];
    // A password inside a URL: scheme://user:password@host.
    let in_url = value
        .split_once("://")
        .and_then(|(_, rest)| rest.split('/').next()?.split_once('@'))
        .is_some_and(|(user, _)| user.contains(':'));
    words.iter().any(|w| name.contains(w)) || marks.iter().any(|m| value.contains(m)) || in_url
}

/// A command line as reports may show it: the value of an option or variable that looks like a secret becomes `***`.
pub fn redacted(command: &str) -> String {
    redact(command.split(' ')).collect::<Vec<_>>().join(" ")
}

/// The same of a command whose words are known; a word may hold a whole command line.
pub fn redacted_words(words: &[String]) -> Vec<String> {
    let inside: Vec<String> = words
        .iter()
        .map(|word| {
            if word.contains(' ') {
                redacted(word)
            } else {
                word.clone()
            }
        })
        .collect();
    redact(inside.iter().map(String::as_str)).collect()
}

fn redact<'a>(words: impl Iterator<Item = &'a str>) -> impl Iterator<Item = String> {
    let mut hide_next = false;
    words.map(move |word| {
        if std::mem::take(&mut hide_next) && !word.starts_with('-') {
            return "***".to_owned();
        }
        match word.split_once('=') {
            Some((name, value)) if looks_secret(name, value) => format!("{name}=***"),
            None if word.starts_with('-') && looks_secret(word, "") => {
                hide_next = true;
                word.to_owned()
            }
            _ if looks_secret("", word) => "***".to_owned(),
            _ => word.to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(exec: &str) -> Service {
        Service {
            name: "web".into(),
            manager: "systemd",
            exec: vec![exec.into()],
            environment: vec![
                ("OPTS".into(), "-a 'b c'".into()),
                ("PORT".into(), "80".into()),
                ("DB_PASSWORD".into(), "x".into()),
                ("URL".into(), "postgres://u:p@host/db".into()),
            ],
            unit: unit::Unit {
                name: "web@eu.service".into(),
                ..unit::Unit::default()
            },
            ..Service::default()
        }
    }

    #[test]
    fn commands() {
        let cmd = |exec: &str| choice(&unit(exec)).ok().map(|c| c.cmd.join("|"));
        assert_eq!(cmd("/bin/a -b 'c d'"), Some("/bin/a|-b|c d".into()));
        assert_eq!(cmd("-/bin/a %i 100%%"), Some("/bin/a|eu|100%".into()));
        assert_eq!(cmd("@/bin/a argv0 x"), Some("/bin/a|x".into()));
        assert_eq!(
            cmd("!!/bin/a $OPTS --port=${PORT}"),
            Some("/bin/a|-a|b c|--port=80".into())
        );
        assert_eq!(cmd(":/bin/a $OPTS"), Some("/bin/a|$OPTS".into()));
        assert_eq!(cmd("/bin/a $UNKNOWN"), None);
        assert_eq!(cmd("/bin/a ${DB_PASSWORD}"), None);
        assert_eq!(cmd("/bin/a %t/run"), None);
        assert_eq!(cmd("/bin/a ; /bin/b"), None);
        assert_eq!(cmd(""), None);
    }

    #[test]
    fn secrets_stay_out_of_the_environment() {
        let choice = choice(&unit("/bin/a")).unwrap();
        assert_eq!(choice.env, ["OPTS=-a 'b c'", "PORT=80"]);
        assert_eq!(choice.notes.len(), 2);
        assert!(!format!("{choice:?}").contains("u:p@"));
        assert_eq!(
            redacted("/bin/a --password=x --db-password y -p 80 postgres://u:p@h/d AKIAX"),
            "/bin/a --password=*** --db-password *** -p 80 *** ***"
        );
    }
}
