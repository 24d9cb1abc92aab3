//! What the machine starts by itself: units of systemd, and scripts and jobs of older systems.

use super::unit::{self, Found, Unit};
use crate::distro::Distros;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::pkgdb::{Owners, Package};
use crate::read_at::read_all;
use crate::source::{Source, read_file};
use crate::tree::Problem;
use globset::{Glob, GlobSet, GlobSetBuilder};
use std::collections::BTreeMap;

/// Something that is started when the machine starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its name, without the ending `.service`.
    pub name: String,
    /// `systemd`, `sysv`, `upstart` or `openrc`.
    pub manager: &'static str,
    /// The file that defines it.
    pub file: Option<GuestPath>,
    /// Name of the package that owns that file; `None` if somebody wrote it.
    pub package: Option<String>,
    /// True if it belongs to the base system: no reason to run the machine.
    pub base: bool,
    /// `Type=`, else `simple` for units of systemd.
    pub kind: Option<String>,
    /// The commands it runs, as they are written.
    pub exec: Vec<String>,
    /// The user it runs as; `None` is root.
    pub user: Option<String>,
    /// The group it runs as.
    pub group: Option<String>,
    /// Its working directory.
    pub working_directory: Option<String>,
    /// Its environment. `scan` shows the names only.
    pub environment: Vec<(String, String)>,
    /// Files with more environment.
    pub environment_files: Vec<String>,
    /// What it is, for people.
    pub description: Option<String>,
    /// The unit itself, for specifiers.
    pub(crate) unit: Unit,
}

/// Somewhere the machine listens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Port {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The address it is bound to; `None` is every one.
    pub address: Option<String>,
    /// The port number.
    pub port: u16,
    /// The unit that says so.
    pub service: String,
}

/// All that is started, and what else is known from the same files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Started {
    /// Services by name.
    pub services: Vec<Service>,
    /// Enabled timers, with their ending.
    pub timers: Vec<String>,
    /// Ports of enabled sockets; `None` if no unit tells one.
    pub ports: Option<Vec<Port>>,
    /// Units that could not be read.
    pub problems: Vec<Problem>,
}

const LIMIT: u64 = 1 << 20;

/// Names of services that every kind of machine has and none is run for: globs, without endings.
const BASE: &[&str] = &[
    // the system itself
    "systemd-*",
    "dbus*",
    "messagebus",
    "polkit*",
    "user@*",
    "user-runtime-dir@*",
    "udev*",
    "eudev",
    "mdev*",
    "kmod*",
    "procps*",
    "sysctl",
    "modules*",
    "hwclock*",
    "hwdrivers",
    "swclock",
    "urandom",
    "random*",
    "hostname*",
    "bootmisc*",
    "bootlogs",
    "mount*",
    "umount*",
    "checkfs*",
    "checkroot*",
    "fsck",
    "root",
    "localmount",
    "netmount",
    "netfs",
    "swap*",
    "mtab*",
    "motd",
    "rmnologin",
    "skeleton",
    "killprocs",
    "single",
    "halt",
    "reboot",
    "sendsigs",
    "rc",
    "rc-*",
    "rc.*",
    "rcS*",
    "local",
    "sudo",
    "loopback",
    "devfs",
    "dmesg",
    "sysfs",
    "procfs",
    "cgroups",
    "tmpfiles*",
    "kexec*",
    "kdump*",
    "microcode*",
    "binfmt*",
    "elogind",
    "acpid*",
    "haldaemon",
    "restorecond",
    "mcstrans",
    "cpuspeed",
    "portreserve",
    "abrt*",
    "quota*",
    "save-env",
    // consoles
    "getty*",
    "serial-getty@*",
    "console*",
    "container-getty@*",
    "autovt@*",
    "agetty*",
    "tty*",
    "kbd",
    "keyboard-setup*",
    "keymaps",
    "consolefont",
    "setvtrgb",
    "plymouth*",
    "gpm",
    "vconsole*",
    // logs, time, jobs
    "rsyslog*",
    "syslog*",
    "sysklogd",
    "klogd",
    "auditd",
    "logrotate*",
    "chrony*",
    "ntp*",
    "openntpd",
    "timesyncd",
    "cron",
    "crond",
    "cronie",
    "anacron*",
    "atd",
    "dcron",
    "sysstat*",
    "psacct",
    "man-db*",
    "mlocate*",
    "plocate*",
    "updatedb*",
    "fstrim*",
    "packagekit*",
    "dnf-*",
    "yum-*",
    "logwatch",
    "rngd*",
    "rng-tools*",
    "haveged",
    // getting in, and the network
    "ssh",
    "sshd*",
    "ssh@*",
    "dropbear",
    "network*",
    "NetworkManager*",
    "ModemManager",
    "wpa_supplicant*",
    "dhcpcd*",
    "dhclient*",
    "ifup@*",
    "ifplugd",
    "wicked*",
    "connman",
    "iwd",
    "resolvconf",
    "nscd",
    "nslcd",
    "unscd",
    "sssd*",
    "avahi-daemon",
    "bluetooth*",
    "firewalld",
    "iptables*",
    "ip6tables*",
    "nftables*",
    "netfilter-persistent",
    "ebtables*",
    "remote-fs*",
    "nfs-client*",
    "nfs-common",
    "rpcbind*",
    "rpc-*",
    "rpcgssd",
    "portmap",
    "fail2ban",
    "apparmor*",
    "selinux*",
    // disks and hardware
    "lvm2*",
    "dm-event*",
    "mdadm*",
    "mdmonitor*",
    "mdcheck*",
    "raid-check*",
    "blk-availability",
    "multipath*",
    "iscsi*",
    "open-iscsi",
    "cryptdisks*",
    "smartd",
    "smartmontools",
    "lm-sensors",
    "lm_sensors",
    "irqbalance",
    "tuned",
    "thermald",
    "upower",
    "udisks2",
    "fwupd*",
    "bolt",
    "alsa-*",
    "zfs-*",
    "btrfs*",
    "xfs_*",
    // guests of a hypervisor
    "cloud-*",
    "waagent",
    "walinuxagent",
    "google-*",
    "amazon-ssm-agent",
    "qemu-guest-agent",
    "open-vm-tools",
    "vmtoolsd",
    "vgauth*",
    "vmware-*",
    "virtualbox-guest-utils",
    "vboxadd*",
    "vboxservice",
    "hv-*",
    "hypervkvpd",
    "hypervvssd",
    "xe-*",
    "spice-vdagent*",
    // a person at a screen
    "display-manager",
    "gdm*",
    "sddm",
    "lightdm",
    "xdm",
    "accounts-daemon",
    "colord",
    "rtkit-daemon",
    "switcheroo-control",
    "power-profiles-daemon",
    "x11-common",
    "cups*",
];

/// Finds what is started, in the order of the names.
///
/// # Errors
/// As the source's reader; [`Error::Usage`] if a glob of a distribution's file makes no sense.
pub fn find(
    source: &dyn Source,
    distros: &Distros,
    distro: Option<&str>,
    packages: &[Package],
    owners: &Owners,
) -> Result<Started> {
    let own = distro.and_then(|id| distros.get(id));
    let of_distro = own
        .map(|d| distros.collected(d, |d| &d.base_services))
        .unwrap_or_default();
    let base = base_names(&of_distro)?;
    let mut started = Started::default();
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    let mut ports = Vec::new();
    let tree = source.tree();
    let systemd = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"]
        .iter()
        .any(|path| tree.find(path).is_some());
    // Packages bring units to machines with another init too.
    let units = if systemd || tree.find("/sbin/init").is_none() {
        unit::wanted(tree)
    } else {
        Vec::new()
    };
    for (name, enabled) in units {
        let unit = match unit::find(source, &name) {
            Ok(Found::Unit(unit)) => unit,
            Ok(Found::Masked | Found::Missing) => continue,
            Err(e) => {
                started.problems.push(Problem {
                    path: GuestPath::root(),
                    what: format!("unit {name}: {e}"),
                });
                continue;
            }
        };
        if name.ends_with(".timer") {
            started.timers.push(name);
        } else if name.ends_with(".socket") {
            ports.extend(listens(&unit));
        } else if let Some(stem) = name.strip_suffix(".service") {
            let mut service = of_unit(stem, unit);
            service.base = !enabled;
            services.insert(stem.to_owned(), service);
        }
    }
    for service in sysv(source)?
        .into_iter()
        .chain(upstart(source)?)
        .chain(openrc(source))
    {
        // systemd-sysv-generator(8): a script is not run if there is a unit of its name, even one that is not enabled.
        let unit = format!("{}.service", service.name);
        if !systemd || matches!(unit::find(source, &unit), Ok(Found::Missing)) {
            services.entry(service.name.clone()).or_insert(service);
        }
    }
    for service in services.values_mut() {
        service.base |= base.is_match(&service.name);
        let owner = service.file.as_ref().and_then(|f| owners.of(f).first());
        service.package = owner.and_then(|o| packages.get(*o)).map(|p| p.name.clone());
    }
    started.services = services.into_values().collect();
    started.ports = (!ports.is_empty()).then_some(ports);
    Ok(started)
}

fn base_names(of_distro: &[&str]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for name in BASE.iter().chain(of_distro) {
        let name = name.strip_suffix(".service").unwrap_or(name);
        set.add(Glob::new(name).map_err(|e| Error::usage(e.to_string()))?);
    }
    set.build().map_err(|e| Error::usage(e.to_string()))
}

fn of_unit(name: &str, unit: Unit) -> Service {
    let text = |section, key| unit.last(section, key).map(str::to_owned);
    let list = |key| -> Vec<String> { unit.list("Service", key).into_iter().map(str::to_owned).collect() };
    let environment = unit
        .list("Service", "Environment")
        .into_iter()
        .flat_map(|line| unit::words(line).unwrap_or_default())
        .filter_map(|word| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect();
    Service {
        name: name.to_owned(),
        manager: "systemd",
        file: unit.file.clone(),
        kind: text("Service", "Type").or_else(|| Some("simple".to_owned())),
        exec: list("ExecStart"),
        user: text("Service", "User"),
        group: text("Service", "Group"),
        working_directory: text("Service", "WorkingDirectory"),
        environment,
        environment_files: list("EnvironmentFile"),
        description: text("Unit", "Description"),
        unit,
        ..Service::default()
    }
}

/// The ports of a socket unit: `ListenStream=80`, `127.0.0.1:80`, `[::1]:80` (systemd.socket(5)). Paths are no ports.
fn listens(unit: &Unit) -> Vec<Port> {
    let mut ports = Vec::new();
    for (key, protocol) in [("ListenStream", "tcp"), ("ListenDatagram", "udp")] {
        for value in unit.list("Socket", key) {
            let (address, port) = match value.rsplit_once(':') {
                Some((address, port)) => (Some(address.trim_matches(['[', ']']).to_owned()), port),
                None => (None, value),
            };
            if let Ok(port) = port.parse() {
                ports.push(Port {
                    protocol,
                    address: address.filter(|a| a != "0.0.0.0" && a != "::"),
                    port,
                    service: unit.name.clone(),
                });
            }
        }
    }
    ports
}

/// Scripts that start links of the usual runlevels name: `/etc/rc2.d/S20nginx`.
fn sysv(source: &dyn Source) -> Result<Vec<Service>> {
    let tree = source.tree();
    let mut found: BTreeMap<String, Service> = BTreeMap::new();
    for folder in [
        "/etc/rc2.d",
        "/etc/rc3.d",
        "/etc/rc5.d",
        "/etc/rc.d/rc3.d",
        "/etc/rc.d/rc5.d",
    ] {
        let Some((dir, _)) = tree.find(folder) else {
            continue;
        };
        for (link, _) in tree.children(&dir) {
            let name = link.name().strip_prefix(b"S").and_then(|n| n.get(2..));
            let Some(Ok(name)) = name.map(std::str::from_utf8) else {
                continue;
            };
            let Ok(file) = tree.resolve(link, true) else {
                continue;
            };
            if name.is_empty() || found.contains_key(name) {
                continue;
            }
            found.insert(
                name.to_owned(),
                Service {
                    name: name.to_owned(),
                    manager: "sysv",
                    exec: vec![format!("{file} start")],
                    file: Some(file),
                    ..Service::default()
                },
            );
        }
    }
    Ok(found.into_values().collect())
}

/// Jobs of upstart (init(5)) that start by themselves: `/etc/init/*.conf` with `start on` and without `manual`.
fn upstart(source: &dyn Source) -> Result<Vec<Service>> {
    let tree = source.tree();
    // Newer machines keep such files beside the units that replaced them.
    if tree.find("/sbin/initctl").is_none() || tree.find("/lib/systemd/systemd").is_some() {
        return Ok(Vec::new());
    }
    let Some((dir, _)) = tree.find("/etc/init") else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for (path, node) in tree.children(&dir).filter(|(_, n)| n.is_file()) {
        let name = path.name().strip_suffix(b".conf").map(std::str::from_utf8);
        let Some(Ok(name)) = name else { continue };
        let mut text = String::from_utf8_lossy(&read_all(&*source.open(node.id)?, LIMIT)?).into_owned();
        if let Some(more) = read_file(source, &format!("/etc/init/{name}.override"), LIMIT)? {
            text.push('\n');
            text.push_str(&String::from_utf8_lossy(&more));
        }
        let stanza = |key: &str| {
            text.lines()
                .rev()
                .find_map(|l| l.strip_prefix(key)?.strip_prefix([' ', '\t']).map(str::trim))
                .map(str::to_owned)
        };
        let starts = text.lines().any(|l| l.starts_with("start on"));
        if !starts || text.lines().any(|l| l.trim() == "manual") {
            continue;
        }
        let pairs = text
            .lines()
            .filter_map(|l| l.strip_prefix("env ")?.trim().split_once('='));
        found.push(Service {
            name: name.to_owned(),
            manager: "upstart",
            file: Some(path.clone()),
            kind: stanza("expect").map(|e| {
                if e == "fork" || e == "daemon" {
                    "forking".to_owned()
                } else {
                    e
                }
            }),
            exec: stanza("exec").into_iter().collect(),
            user: stanza("setuid"),
            group: stanza("setgid"),
            working_directory: stanza("chdir"),
            environment: pairs
                .map(|(k, v)| (k.to_owned(), v.trim_matches('"').to_owned()))
                .collect(),
            description: stanza("description").map(|d| d.trim_matches('"').to_owned()),
            ..Service::default()
        });
    }
    Ok(found)
}

/// Links in `/etc/runlevels/{sysinit,boot,default}` of OpenRC.
fn openrc(source: &dyn Source) -> Vec<Service> {
    let tree = source.tree();
    let mut found = Vec::new();
    for level in ["sysinit", "boot", "default"] {
        let Some((dir, _)) = tree.find(&format!("/etc/runlevels/{level}")) else {
            continue;
        };
        for (link, _) in tree.children(&dir) {
            let Ok(name) = std::str::from_utf8(link.name()) else {
                continue;
            };
            let file = tree.resolve(link, true).ok();
            found.push(Service {
                name: name.to_owned(),
                manager: "openrc",
                base: level != "default",
                exec: vec![format!("/etc/init.d/{name} start")],
                file,
                ..Service::default()
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::MemorySource;

    #[test]
    fn units_on_a_machine_with_another_init() {
        let source = MemorySource::new("m")
            .file("/sbin/init", "")
            .file("/sbin/initctl", "")
            .file("/lib/systemd/system/web.service", "[Service]\nExecStart=/bin/web\n")
            .symlink(
                "/etc/systemd/system/multi-user.target.wants/web.service",
                "/lib/systemd/system/web.service",
            )
            .file("/etc/init.d/old", "")
            .symlink("/etc/rc2.d/S20old", "../init.d/old")
            .file(
                "/etc/init/job.conf",
                "description \"a job\"\nstart on runlevel [2345]\nenv A=\"1\"\nexpect fork\nexec /bin/job -d\n",
            )
            .file("/etc/init/off.conf", "start on startup\nexec /bin/off\n")
            .file("/etc/init/off.override", "manual\n")
            .symlink("/etc/runlevels/default/rc-job", "/etc/init.d/old")
            .build();
        let distros = Distros::load(None).unwrap();
        let found = find(&source, &distros, None, &[], &Owners::default()).unwrap();
        let names: Vec<_> = found
            .services
            .iter()
            .map(|s| (s.name.as_str(), s.manager))
            .collect();
        assert_eq!(names, [("job", "upstart"), ("old", "sysv"), ("rc-job", "openrc")]);
        assert_eq!(found.services[0].kind.as_deref(), Some("forking"));
        assert_eq!(found.services[0].environment, [("A".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn systems_old_and_new() {
        let distros = Distros::load(None).unwrap();
        let source = MemorySource::new("m")
            .file("/lib/systemd/systemd", "")
            .file("/lib/systemd/system/both.service", "[Service]\nExecStart=/bin/both\n")
            .symlink("/etc/rc2.d/S01both", "../init.d/legacy")
            .file(
                "/lib/systemd/system/shop.service",
                "[Unit]\nDescription=Shop\n[Service]\nType=notify\nExecStart=/srv/shop/run --port 80\nUser=shop\n\
                 WorkingDirectory=/srv/shop\nEnvironment=\"MODE=live now\" DB_PASSWORD=x\n",
            )
            .file("/lib/systemd/system/ssh.service", "[Service]\nExecStart=/usr/sbin/sshd -D\n")
            .file("/lib/systemd/system/web.socket", "[Socket]\nListenStream=127.0.0.1:8080\nListenStream=/run/x\nListenDatagram=53\n")
            .symlink("/etc/systemd/system/multi-user.target.wants/shop.service", "/lib/systemd/system/shop.service")
            .symlink("/etc/systemd/system/multi-user.target.wants/ssh.service", "/lib/systemd/system/ssh.service")
            .symlink("/etc/systemd/system/sockets.target.wants/web.socket", "/lib/systemd/system/web.socket")
            .file("/etc/init.d/legacy", "#!/bin/sh\n")
            .symlink("/etc/rc2.d/S20legacy", "../init.d/legacy")
            .symlink("/etc/rc2.d/K20other", "../init.d/legacy")
            .build();
        let found = find(&source, &distros, None, &[], &Owners::default()).unwrap();
        let names: Vec<_> = found.services.iter().map(|s| (s.name.as_str(), s.base)).collect();
        assert_eq!(names, [("legacy", false), ("shop", false), ("ssh", true)]);
        let shop = &found.services[1];
        assert_eq!(shop.kind.as_deref(), Some("notify"));
        assert_eq!(shop.environment[0], ("MODE".into(), "live now".into()));
        assert_eq!(shop.environment[1].0, "DB_PASSWORD");
        let ports = found.ports.unwrap();
        assert_eq!(
            (ports[0].port, ports[0].address.as_deref()),
            (8080, Some("127.0.0.1"))
        );
        assert_eq!((ports[1].port, ports[1].protocol), (53, "udp"));
    }
}
