//! ssh_config(5), judged by `ssh -G`.

use crate::support::tools;
use std::path::Path;
use std::process::Command;
use vm2k::ssh::config::{Files, Place, resolve};
use vm2k::ssh::settings::{IdentityAgent, Strict};
use vm2k::ssh::{Settings, Target};

/// Hosts that every configuration is read for.
const TARGETS: [&str; 6] = [
    "web1",
    "root@web1",
    "web2:2222",
    "db.example.com",
    "10.0.0.7",
    "other",
];

/// Configurations; `DIR` stands for a directory with the files that they include.
const CONFIGURATIONS: [&str; 56] = [
    "",
    "Port 2222",
    "Port=2222",
    "port = 2222\nPort 3333",
    "Host web1\n Port 1\nHost *\n Port 2\n User all",
    "Host *\n Port 2\nHost web1\n Port 1",
    "Host web*\n User w\nHost !web2 web*\n Port 7",
    "Host web? *.example.com\n User w",
    "Host !web1\n User nobody",
    "Host !web1 *\n User others",
    "Host web1 web2\n HostName %h.example.com",
    "Host web1\n HostName 100%%.example.com",
    "User \"a user\"",
    "User 'single'",
    "User a#b # a comment",
    "# a comment\n\n   # another\nUser x",
    "IdentityFile ~/.ssh/one\nIdentityFile /two\nIdentityFile ~/.ssh/one",
    "IdentityFile %d/key-%h-%p-%r-%n-%u\nHostName real.example.com\nUser me",
    "IdentityFile ~/k\nHost web1\n IdentityFile ~/web",
    "Host web1\n IdentityFile none\nHost *\n IdentityFile ~/k",
    "CertificateFile ~/.ssh/c-cert.pub\nCertificateFile /d-cert.pub",
    "IdentitiesOnly yes",
    "IdentitiesOnly no\nIdentitiesOnly yes",
    "IdentityAgent none",
    "IdentityAgent /run/agent",
    "IdentityAgent SSH_AUTH_SOCK",
    "ProxyJump jump",
    "ProxyJump a,me@b:2222",
    "ProxyJump none\nProxyJump a",
    "ProxyJump a\nProxyCommand nc %h %p",
    "ProxyCommand nc %h %p\nProxyJump a",
    "ProxyCommand ssh -W \"%h:%p\" jump # x",
    "ProxyCommand none",
    "UserKnownHostsFile /a /b\nGlobalKnownHostsFile /c",
    "UserKnownHostsFile ~/.ssh/known_%k\nHostKeyAlias web",
    "UserKnownHostsFile none",
    "StrictHostKeyChecking no",
    "StrictHostKeyChecking accept-new",
    "StrictHostKeyChecking yes\nStrictHostKeyChecking no",
    "HostKeyAlias Web.Alias",
    "HashKnownHosts yes",
    "ConnectTimeout 7",
    "ServerAliveInterval 5\nServerAliveCountMax 9",
    "ServerAliveInterval 1m",
    "Compression yes",
    "PreferredAuthentications password,publickey",
    "NumberOfPasswordPrompts 1",
    "AddressFamily inet6",
    "Match host web1\n User matched",
    "Match host web* user root\n Port 9",
    "Match originalhost web1,db.*\n HostName 10.1.1.1\nMatch host 10.1.1.1\n User deep",
    "Match all\n User everyone",
    "Match !host web1\n User notweb1",
    "Host web1\n HostName late.example.com\nMatch final host late.example.com\n User last",
    "Include DIR/*.conf\nUser after",
    "Host web1\n Include DIR/b.conf\nPort 77\nHost *\n Include DIR/a.conf",
];

/// What `ssh -G` prints, as keyword and value.
fn judge(file: &Path, target: &str) -> Vec<(String, String)> {
    let mut command = Command::new("ssh");
    command.arg("-G").arg("-F").arg(file).env_remove("SSH_AUTH_SOCK");
    let parsed = Target::parse(target).unwrap();
    if let Some(port) = parsed.port {
        command.args(["-p", &port.to_string()]);
    }
    if let Some(user) = &parsed.user {
        command.args(["-l", user]);
    }
    let out = command.arg(&parsed.host).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// `text` with `~` and the tokens that `ssh -G` leaves alone replaced.
fn full(text: &str, s: &Settings, place: &Place) -> String {
    let home = place.home.display().to_string();
    let text = match text.strip_prefix("~/") {
        Some(rest) => format!("{home}/{rest}"),
        None => text.to_owned(),
    };
    text.replace("%d", &home)
        .replace("%h", &s.host_name)
        .replace("%p", &s.port.to_string())
        .replace("%r", &s.user)
        .replace("%n", &s.host)
        .replace("%u", &place.user)
        .replace("%k", s.host_key_alias.as_deref().unwrap_or(&s.host))
}

#[test]
fn configurations_mean_what_ssh_says() {
    if !tools("configurations_mean_what_ssh_says", &["ssh"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.conf"), "Host web1\n User fromA\n Port 4444\n").unwrap();
    std::fs::write(dir.path().join("b.conf"), "User fromB\nHost db*\n Port 5555\n").unwrap();
    std::fs::write(dir.path().join("c.txt"), "User fromC\n").unwrap();
    let place = Place {
        variable: std::sync::Arc::new(|_| None),
        ..Place::here()
    };
    let mut compared = 0;
    for text in CONFIGURATIONS {
        let text = text.replace("DIR", &dir.path().display().to_string());
        let file = dir.path().join("config");
        std::fs::write(&file, &text).unwrap();
        for name in TARGETS {
            let target = Target::parse(name).unwrap();
            let ours = resolve(&target, &Files::Only(file.clone()), &place)
                .unwrap_or_else(|e| panic!("{text}\n{name}: {e}"));
            let judge = judge(&file, name);
            let context = format!("{name} with\n{text}");
            let one = |key: &str| judge.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
            let all = |key: &str| -> Vec<String> {
                let values = judge.iter().filter(|(k, _)| k == key);
                values.map(|(_, v)| full(v, &ours, &place)).collect()
            };
            let paths = |list: &[std::path::PathBuf]| -> Vec<String> {
                list.iter().map(|p| p.display().to_string()).collect()
            };
            let words = |key: &str| -> Vec<String> {
                let words = one(key).unwrap_or_default().split_whitespace();
                words
                    .filter(|w| *w != "none")
                    .map(|w| full(w, &ours, &place))
                    .collect()
            };
            let yes = |b: bool| if b { "yes" } else { "no" };
            assert_eq!(Some(ours.host_name.as_str()), one("hostname"), "{context}");
            assert_eq!(Some(ours.port.to_string().as_str()), one("port"), "{context}");
            assert_eq!(Some(ours.user.as_str()), one("user"), "{context}");
            let files: Vec<String> = all("identityfile")
                .into_iter()
                .filter(|f| f != "none" && !f.ends_with("/id_dsa"))
                .collect();
            assert_eq!(paths(&ours.identity_files), files, "{context}");
            assert_eq!(
                paths(&ours.certificate_files),
                all("certificatefile"),
                "{context}"
            );
            assert_eq!(
                Some(yes(ours.identities_only)),
                one("identitiesonly"),
                "{context}"
            );
            let agent = match &ours.identity_agent {
                IdentityAgent::Environment => None,
                IdentityAgent::None => Some("none".to_owned()),
                IdentityAgent::Socket(path) => Some(path.display().to_string()),
            };
            let theirs = one("identityagent").filter(|v| *v != "SSH_AUTH_SOCK");
            assert_eq!(agent.as_deref(), theirs, "{context}");
            let jump: Vec<String> = ours.proxy_jump.iter().map(ToString::to_string).collect();
            let theirs = one("proxyjump").filter(|v| *v != "none").unwrap_or_default();
            assert_eq!(jump.join(","), theirs, "{context}");
            let theirs = one("proxycommand").filter(|v| *v != "none");
            assert_eq!(ours.proxy_command.as_deref(), theirs, "{context}");
            assert_eq!(
                paths(&ours.user_known_hosts),
                words("userknownhostsfile"),
                "{context}"
            );
            assert_eq!(
                paths(&ours.global_known_hosts),
                words("globalknownhostsfile"),
                "{context}"
            );
            let strict: &[&str] = match ours.strict {
                Strict::Refuse => &["ask", "true", "yes"],
                Strict::AcceptNew => &["accept-new"],
                Strict::Off => &["false", "no", "off"],
            };
            assert!(
                strict.contains(&one("stricthostkeychecking").unwrap()),
                "{context}"
            );
            assert_eq!(ours.host_key_alias.as_deref(), one("hostkeyalias"), "{context}");
            assert_eq!(
                Some(yes(ours.hash_known_hosts)),
                one("hashknownhosts"),
                "{context}"
            );
            let timeout = ours
                .connect_timeout
                .map_or("none".to_owned(), |t| t.as_secs().to_string());
            assert_eq!(Some(timeout.as_str()), one("connecttimeout"), "{context}");
            let alive = ours.alive_interval.map_or(0, |t| t.as_secs()).to_string();
            assert_eq!(Some(alive.as_str()), one("serveraliveinterval"), "{context}");
            assert_eq!(
                Some(ours.alive_count.to_string().as_str()),
                one("serveralivecountmax"),
                "{context}"
            );
            assert_eq!(Some(yes(ours.compression)), one("compression"), "{context}");
            if let Some(theirs) = one("preferredauthentications") {
                assert_eq!(ours.authentications.join(","), theirs, "{context}");
            }
            assert_eq!(
                Some(ours.prompts.to_string().as_str()),
                one("numberofpasswordprompts"),
                "{context}"
            );
            let family = match ours.address_family {
                None => "any",
                Some(4) => "inet",
                Some(_) => "inet6",
            };
            assert_eq!(Some(family), one("addressfamily"), "{context}");
            assert!(ours.remarks.is_empty(), "{context}: {:?}", ours.remarks);
            compared += 1;
        }
    }
    eprintln!("{compared} comparisons with ssh -G");
}

#[test]
fn what_is_not_followed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config");
    let read = |text: &str| {
        std::fs::write(&file, text).unwrap();
        resolve(
            &Target::parse("web1").unwrap(),
            &Files::Only(file.clone()),
            &Place::here(),
        )
    };
    let settings = read("ForwardAgent yes\nBindAddress 10.0.0.1\nMatch exec \"true\"\n User x\n").unwrap();
    assert_eq!(settings.remarks.len(), 2, "{:?}", settings.remarks);
    assert!(settings.remarks[0].ends_with("config:2: bindaddress is not followed"));
    assert!(settings.remarks[1].contains("config:3: Match exec is not followed"));
    assert_ne!(settings.user, "x");
    for wrong in [
        "Port x",
        "Port 0",
        "IdentityFile \"open",
        "Compression maybe",
        "ConnectTimeout 1x",
        "Port",
        "IdentityFile %z",
        "ProxyJump -oX=y",
        "Match host",
    ] {
        let e = read(wrong).unwrap_err();
        assert_eq!(e.code(), vm2k::error::code::USAGE, "{wrong}: {e}");
    }
    let loops = dir.path().join("loop");
    std::fs::write(&loops, format!("Include {}\n", loops.display())).unwrap();
    let place = Place::here();
    let e = resolve(&Target::parse("a").unwrap(), &Files::Only(loops), &place).unwrap_err();
    assert!(e.to_string().contains("include one another"), "{e}");
}
