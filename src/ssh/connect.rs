//! From a name to a session that is logged in: hosts between, socket, handshake, the host's key.

use super::cert::{Certificate, SUFFIX};
use super::config;
use super::jump;
use super::key::{PublicKey, short_kind};
use super::known_hosts::{self, KnownHosts, Mark, Verdict};
use super::login::Login;
use super::pump::{EAGAIN, Limits, Pump};
use super::session::{Options, Session};
use super::settings::{Settings, Strict};
use super::target::Target;
use super::transport::{Transport as _, lost};
use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ssh2::{BlockDirections, ErrorCode, MethodType};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long connecting may take where nobody says it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Hosts between at most.
const MAX_HOPS: usize = 8;

pub(super) fn connect(target: &Target, options: &Options) -> Result<Session> {
    for key in &options.accept_host_keys {
        let digest = key.strip_prefix("SHA256:").unwrap_or_default();
        if digest.len() != 43
            || !digest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+/".contains(&b))
        {
            return Err(Error::usage(format!("{key} is not the fingerprint of a key"))
                .hint("give it as ssh-keygen -l prints it: SHA256: and 43 characters"));
        }
    }
    hop(target, options, None, 0)
}

/// Connects to `target` by way of `jumps`, or of those that its configuration names.
fn hop(target: &Target, options: &Options, jumps: Option<Vec<Target>>, depth: usize) -> Result<Session> {
    if depth > MAX_HOPS {
        return Err(Error::usage(format!(
            "{target}: more than {MAX_HOPS} hosts between (ProxyJump)"
        )));
    }
    let settings = config::resolve(target, &options.files, &options.place)?;
    for remark in &settings.remarks {
        (options.warn)(remark);
    }
    let mut jumps = jumps.unwrap_or_else(|| settings.proxy_jump.clone());
    if let (Some(command), true) = (&settings.proxy_command, jumps.is_empty()) {
        return Err(
            Error::unsupported(format!("{target}: ProxyCommand {command}")).hint(
                "--rsh ssh connects with the system's own client, which runs it; ProxyJump is understood",
            ),
        );
    }
    let via = match jumps.pop() {
        Some(near) => {
            // Without further hosts on this list, the first one's own configuration counts.
            let rest = (!jumps.is_empty()).then_some(jumps);
            Some(Arc::new(hop(&near, options, rest, depth.saturating_add(1))?))
        }
        None => None,
    };
    let place = match settings.host_name.contains(':') {
        true => format!("[{}]:{}", settings.host_name, settings.port),
        false => format!("{}:{}", settings.host_name, settings.port),
    };
    let name = format!("{}@{place}", settings.user);
    let timeout = options
        .connect_timeout
        .or(settings.connect_timeout)
        .unwrap_or(TIMEOUT);
    let until = Instant::now() + timeout;
    let socket: OwnedFd = match &via {
        Some(via) => {
            let stream = jump::tunnel(via, &settings.host_name, settings.port);
            stream.map_err(|e| e.within(&name))?.into()
        }
        None => open(&settings, &name, until, timeout)?.into(),
    };
    let copy = socket.try_clone().map_err(|e| Error::io("copying a socket", e))?;
    let known = {
        let files = settings
            .user_known_hosts
            .iter()
            .chain(&settings.global_known_hosts);
        KnownHosts::read(&files.cloned().collect::<Vec<_>>())?
    };
    let wire = Wire {
        session: ssh2::Session::new().map_err(|e| lost(format!("libssh2: {}", e.message())))?,
        socket: copy,
        name: name.clone(),
    };
    let result = (|| {
        wire.handshake(socket, &settings, &known, until, timeout)?;
        check_key(&wire, &settings, &known, options)?;
        Login::new(&wire, &settings, options, depth == 0).run()
    })();
    if let Err(e) = result {
        // A host between that is gone is the cause.
        let cause = via.as_ref().and_then(|via| via.failure());
        wire.give_up();
        return Err(match (cause, e.code()) {
            (Some(cause), crate::error::code::NETWORK) => lost(format!("{name}: {cause}")),
            _ => e,
        });
    }
    let limits = Limits {
        idle: options.idle,
        open: timeout.max(TIMEOUT).min(options.idle),
        alive_interval: settings.alive_interval.unwrap_or(options.alive_interval),
        alive_count: settings.alive_count,
    };
    let pump = Pump::new(wire.session, wire.socket, name.clone(), limits)?;
    let session = Session::new(name, pump, via);
    (options.note)(&format!("{}: connected", session.name()));
    Ok(session)
}

/// A TCP connection to the host, all of its addresses tried in order.
fn open(settings: &Settings, name: &str, until: Instant, timeout: Duration) -> Result<TcpStream> {
    let slow = || {
        lost(format!("{name}: no connection within {} s", timeout.as_secs()))
            .hint("check the host's name, its port and the firewalls between")
    };
    let left = || {
        until
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    };
    let (host, port) = (settings.host_name.clone(), settings.port);
    let (answer, resolved) = sync_channel(1);
    // The resolver has no deadline: it is left behind when it is too slow.
    std::thread::spawn(move || {
        let addresses = (host.as_str(), port).to_socket_addrs();
        let _ = answer.send(addresses.map(Iterator::collect::<Vec<SocketAddr>>));
    });
    let addresses = resolved
        .recv_timeout(left().ok_or_else(slow)?)
        .map_err(|_| slow())?;
    let mut addresses = addresses.map_err(|e| {
        Error::network(format!("{name}: looking up {}", settings.host_name), e)
            .hint("check the name of the host")
    })?;
    if let Some(family) = settings.address_family {
        addresses.retain(|a| a.is_ipv4() == (family == 4));
    }
    let mut last = None;
    let count = addresses.len();
    for (index, address) in addresses.iter().enumerate() {
        let left = left().ok_or_else(slow)?;
        // One address that answers nothing must not use up the time of those behind it.
        let share = left / u32::try_from(count.saturating_sub(index)).unwrap_or(1).max(1);
        match TcpStream::connect_timeout(address, share) {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(e) => last = Some(e),
        }
    }
    Err(match last {
        Some(e) if e.kind() == std::io::ErrorKind::TimedOut => slow(),
        Some(e) => Error::network(format!("{name}: connecting"), e)
            .hint("check that the host is up, that sshd listens there and that no firewall stands between"),
        None => lost(format!("{name}: the host has no address of the wanted kind")),
    })
}

/// A connection that is being made: libssh2 without blocking, and the socket below it.
pub(super) struct Wire {
    pub(super) session: ssh2::Session,
    pub(super) socket: OwnedFd,
    pub(super) name: String,
}

impl Wire {
    /// Calls `call` until it has an answer, at most to the time that `until` says whenever it is asked.
    pub(super) fn drive<T>(
        &self,
        until: &dyn Fn() -> Instant,
        mut call: impl FnMut() -> Result<T, ssh2::Error>,
    ) -> Option<Result<T, ssh2::Error>> {
        loop {
            match call() {
                Err(e) if e.code() == ErrorCode::Session(EAGAIN) => {}
                done => return Some(done),
            }
            let left = until()
                .checked_duration_since(Instant::now())
                .filter(|l| !l.is_zero())?;
            let flags = match self.session.block_directions() {
                BlockDirections::Outbound => PollFlags::OUT,
                BlockDirections::Both => PollFlags::IN | PollFlags::OUT,
                BlockDirections::Inbound | BlockDirections::None => PollFlags::IN,
            };
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let _ = poll(&mut [PollFd::new(&self.socket, flags)], Some(&timeout));
        }
    }

    fn handshake(
        &self,
        socket: OwnedFd,
        settings: &Settings,
        known: &KnownHosts,
        until: Instant,
        timeout: Duration,
    ) -> Result<()> {
        let mut session = self.session.clone();
        session.set_tcp_stream(socket);
        session.set_blocking(false);
        session.set_compress(settings.compression);
        self.prefer(settings, known)?;
        let done = self.drive(&|| until, || session.handshake());
        let name = &self.name;
        let error = match done {
            Some(Ok(())) => return Ok(()),
            None => {
                let text = format!(
                    "{name} did not finish the handshake within {} s",
                    timeout.as_secs()
                );
                return Err(
                    lost(text).hint("check that an ssh server answers on this port, and is not overloaded")
                );
            }
            Some(Err(error)) => error,
        };
        let software = self.session.banner().unwrap_or("no ssh server").to_owned();
        const OLD: &str = "an old host may have only ssh-rsa keys with SHA-1: connect with the system's client, \
                           --rsh 'ssh -oHostKeyAlgorithms=+ssh-rsa -oPubkeyAcceptedAlgorithms=+ssh-rsa'";
        Err(match error.code() {
            // The exchange of keys has one code for both causes. Where nothing was agreed on and the host still listens,
            // there is no method that both have.
            ErrorCode::Session(-5 | -8 | -33 | -17)
                if self.session.methods(MethodType::HostKey).is_none() =>
            {
                let text =
                    format!("{name}: the host ({software}) and this program have no algorithm in common");
                match self.has_ended() {
                    false => Error::unsupported(text).hint(OLD),
                    true => {
                        lost(format!("{text}, or the connection broke")).hint(format!("try again; {OLD}"))
                    }
                }
            }
            ErrorCode::Session(-2) => lost(format!(
                "{name} sent no greeting of an ssh server: {}",
                error.message()
            ))
            .hint("check the port; sshd closes at once where a firewall, MaxStartups or a ban stops it"),
            _ => lost(format!("{name} broke off the handshake: {}", error.message()))
                .hint("try again; sshd closes at once where MaxStartups or a ban stops it"),
        })
    }

    /// True if the host closed the connection.
    fn has_ended(&self) -> bool {
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.socket, &mut [0_u8; 1][..], flags) {
            Ok((count, _)) => count == 0,
            Err(e) => e != rustix::io::Errno::AGAIN,
        }
    }

    /// Says which algorithms are wanted.
    fn prefer(&self, settings: &Settings, known: &KnownHosts) -> Result<()> {
        let supported = |kind: MethodType| self.session.supported_algs(kind).unwrap_or_default();
        let set = |kind: MethodType, keyword: &str, list: &str| {
            let done = self.session.method_pref(kind, list);
            done.map_err(|e| {
                Error::unsupported(format!("{}: {keyword} {list}: {}", self.name, e.message()))
                    .hint("--rsh ssh connects with the system's own client")
            })
        };
        for (keyword, kinds) in [
            ("kexalgorithms", &[MethodType::Kex][..]),
            ("ciphers", &[MethodType::CryptCs, MethodType::CryptSc][..]),
            ("macs", &[MethodType::MacCs, MethodType::MacSc][..]),
        ] {
            for kind in kinds {
                let mut all = supported(*kind);
                if let Some(list) = settings.algorithms(keyword, &all) {
                    set(*kind, keyword, &list)?;
                } else if keyword == "ciphers" {
                    // Of the safe ones, the processors of today are fastest with these.
                    all.sort_by_key(|cipher| (!cipher.starts_with("aes128-gcm@"), !cipher.contains("-gcm@")));
                    set(*kind, keyword, &all.join(","))?;
                }
            }
        }
        let all = supported(MethodType::HostKey);
        let name = settings.known_as();
        let wanted = settings.algorithms("hostkeyalgorithms", &all);
        let mut list: Vec<&str> = match &wanted {
            Some(list) => list.split(',').collect(),
            None => all,
        };
        let authorities = !known.kinds(&name, Mark::Authority).is_empty();
        let kinds = known.kinds(&name, Mark::Host);
        let rank = |algorithm: &str| {
            if algorithm.ends_with(SUFFIX) {
                return 0;
            }
            let kind = if algorithm.starts_with("rsa-sha2-") {
                "ssh-rsa"
            } else {
                algorithm
            };
            if kinds.contains(&kind) { 1 } else { 2 }
        };
        // A certificate says nothing where no authority is known.
        list.retain(|algorithm| authorities || !algorithm.ends_with(SUFFIX));
        if wanted.is_none() {
            list.sort_by_key(|algorithm| rank(algorithm));
        }
        set(MethodType::HostKey, "HostKeyAlgorithms", &list.join(","))
    }

    /// Ends it without waiting for the far side.
    fn give_up(self) {
        let _ = self.session.disconnect(None, "done", None);
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        self.session.set_blocking(true);
        self.session.set_timeout(100);
    }
}

/// Compares the key that the host proved to have with the known ones.
fn check_key(wire: &Wire, settings: &Settings, known: &KnownHosts, options: &Options) -> Result<()> {
    let name = &wire.name;
    let blob = wire.session.host_key().map(|(blob, _)| blob.to_vec());
    let mut key = PublicKey {
        blob: blob.ok_or_else(|| lost(format!("{name} has no key")))?,
    };
    let known_as = settings.known_as();
    if key.kind().is_some_and(|kind| kind.ends_with(SUFFIX)) {
        let certificate = Certificate::parse(&key.blob)
            .ok_or_else(|| Error::refused(format!("{name}: the host's certificate cannot be read")))?;
        let bare = settings.host_key_alias.as_deref().unwrap_or(&settings.host_name);
        let authority = known
            .of(&known_as)
            .find(|e| e.mark == Mark::Authority && e.key == certificate.authority);
        let revoked = known.of(&known_as).find(|e| {
            e.mark == Mark::Revoked && (e.key == certificate.authority || e.key == certificate.key)
        });
        if let Some(entry) = revoked {
            return Err(Error::refused(format!(
                "{name}: the host's key is revoked at {}",
                entry.place
            )));
        }
        if let Some(entry) = authority {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs();
            return certificate.check_host(&bare.to_ascii_lowercase(), now).map_err(|why| {
                let text = format!(
                    "{name}: the host's certificate ({}) does not hold, though {} names its authority: {why}",
                    certificate.id, entry.place
                );
                Error::refused(text).hint("have the host's key certified again, or put the key itself into known_hosts")
            });
        }
        key = certificate.key;
    }
    let kind = short_kind(key.kind().unwrap_or("?"));
    let fingerprint = key.fingerprint();
    let plain = (settings.host_key_alias.is_none() && settings.port != 22)
        .then(|| settings.host_name.to_ascii_lowercase());
    let others = match known.check(&known_as, plain.as_deref(), &key) {
        Verdict::Known(_) => return Ok(()),
        Verdict::Revoked(place) => {
            return Err(Error::refused(format!(
                "{name}: the host's key ({kind} {fingerprint}) is revoked at {place}"
            ))
            .hint("do not connect: somebody else may have this key"));
        }
        Verdict::Changed(place) => {
            let text = format!(
                "{name}: the host's key has changed: it now shows {kind} {fingerprint}, but {place} has another"
            );
            return Err(Error::refused(text).hint(format!(
                "somebody may stand between; if the host was installed anew, remove the line: ssh-keygen -R '{known_as}' -f {}",
                place.file.display()
            )));
        }
        Verdict::Unknown(others) => others,
    };
    if options.accept_host_keys.contains(&fingerprint) {
        return Ok(());
    }
    let new = options.accept_new_host_keys || settings.strict != Strict::Refuse;
    if new && others.is_empty() {
        (options.warn)(&format!("{name}: accepted the new key {kind} {fingerprint}"));
        if let Some(file) = settings.user_known_hosts.first() {
            let line = known_hosts::line(&known_as, &key, settings.hash_known_hosts)?;
            if let Err(e) = known_hosts::append(file, &line) {
                (options.warn)(&format!("{e}: the key of {name} was not written down"));
            }
        }
        return Ok(());
    }
    let also = match others.first() {
        Some(other) => format!(
            ", and {} has a key of another type ({}) for it",
            other.place,
            short_kind(other.key.kind().unwrap_or("?"))
        ),
        None => String::new(),
    };
    let text = format!("{name}: the host's key is not known: {kind} {fingerprint}{also}");
    Err(Error::refused(text).hint(format!(
        "compare it with `ssh-keygen -lf` of the key on the host, then give --accept-host-key {fingerprint}"
    )))
}
