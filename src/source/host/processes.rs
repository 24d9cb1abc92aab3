//! The files below `/proc` of a host without an agent, as a shell prints them.

use crate::live::SavedProc;

/// What is read once, and of each process.
const ONCE: &str = "net/tcp net/tcp6 net/udp net/udp6 net/unix self/mountinfo meminfo stat uptime loadavg locks cmdline \
                    sys/kernel/ostype sys/kernel/osrelease sys/kernel/version sys/kernel/hostname sys/kernel/random/boot_id";
const EACH: &str = "status cmdline cgroup limits";

/// A command that prints files of `/proc`, each behind a line with `token` and its path, and links as `ls -l` does. With
/// `environment` that of each process too: without it not even the names come, because a shell cannot tell the two apart.
pub(super) fn script(token: &str, environment: bool) -> String {
    let each = if environment {
        format!("{EACH} environ")
    } else {
        EACH.to_owned()
    };
    format!(
        "cd /proc || exit 0; LC_ALL=C; export LC_ALL; \
         show() {{ if [ -r \"$1\" ]; then printf '\\n%s %s\\n' {token} \"$1\"; cat \"$1\" 2>/dev/null; fi; }}; \
         for f in {ONCE}; do show $f; done; \
         for p in [0-9]*; do [ $p = $$ ] && continue; for f in {each}; do show $p/$f; done; \
         printf '\\n%s %s\\n' {token} $p; ls -l $p/exe $p/cwd $p/root $p/fd/ 2>/dev/null; done; \
         printf '\\n%s\\n' {token}; uname -m; exit 0"
    )
}

/// Takes apart what [`script`] printed.
pub(super) fn parse(printed: &[u8], token: &str) -> SavedProc {
    let mark = format!("\n{token}");
    let mut parts: Vec<(&[u8], &[u8])> = Vec::new();
    let mut rest = printed;
    while let Some(at) = find(rest, mark.as_bytes()) {
        let after = rest.get(at + mark.len()..).unwrap_or_default();
        let end = after.iter().position(|b| *b == b'\n').unwrap_or(after.len());
        let name = after.get(..end).unwrap_or_default();
        let content = after.get(end + 1..).unwrap_or_default();
        let stop = find(content, mark.as_bytes()).unwrap_or(content.len());
        parts.push((name.trim_ascii(), content.get(..stop).unwrap_or_default()));
        rest = content;
    }
    let machine = parts.iter().rev().find(|(name, _)| name.is_empty());
    let machine = machine
        .map(|(_, m)| String::from_utf8_lossy(m).trim().to_owned())
        .unwrap_or_default();
    let big = ["s390", "sparc", "m68k", "parisc"]
        .iter()
        .any(|b| machine.starts_with(b))
        || matches!(machine.as_str(), "ppc" | "ppc64" | "mips" | "mips64");
    let mut saved = SavedProc::new(big);
    for (name, content) in parts {
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        if name.contains('/') || !name.bytes().all(|b| b.is_ascii_digit()) || name.is_empty() {
            if !name.is_empty() {
                saved.file(name, content);
            }
            continue;
        }
        for line in content.split(|b| *b == b'\n') {
            let Some(at) = find(line, b" -> ") else { continue };
            let (left, target) = (
                line.get(..at).unwrap_or_default(),
                line.get(at + 4..).unwrap_or_default(),
            );
            let link = left.rsplit(|b| *b == b' ').next().unwrap_or_default();
            let Ok(link) = std::str::from_utf8(link) else {
                continue;
            };
            match link.contains('/') {
                true => saved.symlink(link, target),
                false => saved.symlink(&format!("{name}/fd/{link}"), target),
            }
        }
    }
    saved
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::{Ask, collect};

    /// This host through its own shell: what the other way of reading says of the same processes.
    #[test]
    fn a_shell_tells_what_the_files_tell() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sleeper = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let printed = std::process::Command::new("sh")
            .args(["-c", &script("T0K3N", true)])
            .output()
            .unwrap()
            .stdout;
        let live = collect(&parse(&printed, "T0K3N"), &Ask::default());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        let one = live
            .processes
            .iter()
            .find(|p| p.pid == sleeper.id())
            .expect("the process");
        assert_eq!(one.argv, ["sleep", "600"]);
        assert_eq!(one.cwd.as_deref(), std::env::current_dir().unwrap().to_str());
        assert!(one.environment.as_ref().is_some_and(|e| e.contains_key("PATH")));
        let port = listener.local_addr().unwrap().port();
        let socket = live
            .listening
            .iter()
            .find(|l| l.port == Some(port))
            .expect("the socket");
        assert!(socket.pids.contains(&std::process::id()));
        let direct = collect(&crate::live::HostProc::default(), &Ask::default());
        assert_eq!(live.kernel, direct.kernel);
        assert_eq!(live.mounts, direct.mounts);
        assert_eq!(live.cpus, direct.cpus);
    }

    #[test]
    fn what_is_no_answer_is_nothing() {
        for text in [&b""[..], b"\nT", b"\nT 1\n -> \n", b"\nT 1\nx -> y", b"T x\n"] {
            let _ = collect(&parse(text, "T"), &Ask::default());
        }
    }
}
