//! Files that must not leave a machine: secrets, and what makes it this machine and no other. Found by their paths;
//! rules that belong to one distribution stand in `distros/`.

use crate::distro::Distros;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::pkgdb::{Owners, Package};
use crate::tree::Tree;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One rule: a name for reports, and globs over whole paths (`*` stops at `/`, `**` does not).
pub struct Rule {
    /// Its name, as `--allow-secrets` takes it.
    pub name: &'static str,
    /// What it finds.
    pub globs: &'static [&'static str],
}

/// A file and the rule that found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Name of the rule.
    pub rule: String,
    /// The file. Its content is never shown.
    pub path: GuestPath,
}

/// Every rule that holds for all distributions.
pub const RULES: &[Rule] = &[
    Rule {
        name: "ssh-host-key",
        globs: &["/etc/ssh/ssh_host_*_key", "/etc/dropbear/dropbear_*_host_key"],
    },
    Rule {
        name: "ssh-private-key",
        globs: &[
            "**/.ssh/id_{rsa,dsa,ecdsa,ed25519,ecdsa_sk,ed25519_sk,xmss}",
            "**/.ssh/*.{pem,key,ppk}",
            "**/.ssh/identity",
        ],
    },
    Rule {
        name: "tls-private-key",
        globs: &[
            "/etc/ssl/private/**",
            "/etc/pki/tls/private/**",
            "/etc/pki/*/private/**",
            "/etc/letsencrypt/{archive,live}/**/privkey*.pem",
            "/etc/letsencrypt/{accounts,keys}/**",
            "/etc/{nginx,apache2,httpd,haproxy,postfix,dovecot,exim4,ldap,openldap,mysql,postgresql*,lighttpd,stunnel,cups,ssl}/**/*.{key,p12,pfx,jks}",
            "/etc/{dovecot,stunnel}/private/**",
            "/etc/haproxy/**/*.pem",
            "/etc/ipsec.d/private/**",
            "/etc/swanctl/{private,rsa,ecdsa,pkcs8,pkcs12}/**",
            "/var/lib/{postgresql,pgsql}/**/server.key",
            "/var/lib/mysql/*-key.pem",
            "/var/lib/mysql/private_key.pem",
        ],
    },
    Rule {
        name: "vpn-key",
        globs: &[
            "/etc/wireguard/**",
            "/etc/openvpn/**/*.{key,p12,ovpn}",
            "/etc/ipsec.secrets",
            "/etc/swanctl/swanctl.conf",
            "/etc/tinc/**/*.priv",
            "/etc/ppp/{chap,pap}-secrets",
        ],
    },
    Rule {
        name: "password-hash",
        globs: &[
            "/etc/{shadow,shadow-,gshadow,gshadow-}",
            "/etc/security/opasswd*",
            "/etc/**/.htpasswd*",
            "/etc/{nginx,apache2,httpd}/**/*htpasswd*",
            "/var/www/**/.htpasswd*",
        ],
    },
    Rule {
        name: "machine-id",
        globs: &["/etc/machine-id", "/var/lib/dbus/machine-id", "/etc/hostid"],
    },
    Rule {
        name: "random-seed",
        globs: &[
            "/var/lib/systemd/random-seed",
            "/var/lib/{urandom,random-seed,misc,seedrng}/**/random-seed",
            "/var/lib/urandom/random-seed",
            "/var/lib/seedrng/**",
            "/boot/**/loader/random-seed",
        ],
    },
    Rule {
        name: "systemd-credential",
        globs: &["/var/lib/systemd/credential.secret", "/etc/credstore*/**"],
    },
    Rule {
        name: "history",
        globs: &[
            "**/.{bash,zsh,ash,sh,mysql,mariadb,psql,python,sqlite,rediscli,scapy,irb,node_repl,dbshell,mongo,tclsh,lua,php}_history",
            "**/.{history,histfile,lesshst,viminfo,wget-hsts,dbshell,recently-used}",
            "**/.local/share/fish/fish_history",
            "**/.local/share/mc/history",
        ],
    },
    Rule {
        name: "netrc",
        globs: &["**/.netrc", "**/_netrc", "**/.authinfo", "**/.authinfo.gpg"],
    },
    Rule {
        name: "database-password",
        globs: &[
            "**/.pgpass",
            "**/.my.cnf",
            "**/.mylogin.cnf",
            "/etc/dbconfig-common/*.conf",
            "/etc/pgbouncer/userlist.txt",
        ],
    },
    Rule {
        name: "cloud-credentials",
        globs: &[
            "**/.aws/{credentials,config,cli/cache/**,sso/cache/**}",
            "**/.config/gcloud/**",
            "**/.azure/**",
            "**/.{boto,s3cfg,passwd-s3fs}",
            "/etc/{boto.cfg,passwd-s3fs}",
            "**/.config/rclone/rclone.conf",
            "**/.config/{doctl,hcloud,openstack,linode-cli}/**",
            "**/.oci/**",
            "/etc/openstack/clouds.yaml",
        ],
    },
    Rule {
        name: "kubeconfig",
        globs: &[
            "**/.kube/config",
            "/etc/kubernetes/*.conf",
            "/etc/kubernetes/pki/**/*.key",
            "/etc/rancher/{k3s,rke2}/*.yaml",
            "/var/lib/kubelet/pki/**",
            "/var/lib/kubelet/{kubeconfig,bootstrap-kubeconfig}",
            "/var/lib/rancher/{k3s,rke2}/{server,agent}/{token,cred/**,tls/**,*.key,*.kubeconfig,node-token}",
        ],
    },
    Rule {
        name: "registry-credentials",
        globs: &[
            "**/.docker/config.json",
            "/etc/docker/key.json",
            "**/.config/containers/auth.json",
            "/run/**/containers/auth.json",
            "**/.dockercfg",
        ],
    },
    Rule {
        name: "cloud-init",
        globs: &[
            "/var/lib/cloud/{instance,instances,data,seed,sem}/**",
            "/run/cloud-init/**",
            "/var/lib/waagent/**",
            "/var/log/cloud-init*.log",
        ],
    },
    Rule {
        name: "wifi-key",
        globs: &[
            "/etc/NetworkManager/system-connections/**",
            "/etc/wpa_supplicant/**/*.conf",
            "/etc/wpa_supplicant.conf",
            "/var/lib/iwd/**",
            "/var/lib/connman/**",
            "/etc/netctl/*",
        ],
    },
    Rule {
        name: "kerberos",
        globs: &[
            "/etc/krb5.keytab",
            "/etc/**/*.keytab",
            "/var/**/*.keytab",
            "/var/kerberos/krb5kdc/**",
            "/var/lib/krb5kdc/**",
            "/etc/krb5kdc/{stash,.k5.*}",
            "/tmp/krb5cc_*",
        ],
    },
    Rule {
        name: "directory-service",
        globs: &[
            "/etc/{ldap.secret,pam_ldap.secret,nslcd.conf,libnss-ldap.secret}",
            "/etc/sssd/sssd.conf",
            "/var/lib/sss/{secrets,db}/**",
            "/var/lib/samba/private/**",
            "/var/lib/samba/*.tdb",
            "/etc/samba/{smbpasswd,secrets.tdb,*.creds}",
        ],
    },
    Rule {
        name: "pgp-private-key",
        globs: &[
            "**/.gnupg/private-keys-v1.d/**",
            "**/.gnupg/secring.gpg",
            "**/.gnupg/openpgp-revocs.d/**",
        ],
    },
    Rule {
        name: "developer-token",
        globs: &[
            "**/.git-credentials",
            "**/.config/git/credentials",
            "**/.{npmrc,yarnrc.yml,pypirc,vault-token}",
            "**/.gem/credentials",
            "**/.cargo/credentials{,.toml}",
            "**/.m2/settings{,-security}.xml",
            "**/.gradle/gradle.properties",
            "**/.composer/auth.json",
            "**/.config/composer/auth.json",
            "**/.config/gh/hosts.yml",
            "**/.config/{glab-cli,hub}*",
            "**/.terraform.d/credentials.tfrc.json",
            "**/.terraformrc",
        ],
    },
    Rule {
        name: "environment-file",
        globs: &[
            "/{srv,opt,home,root,var/www,usr/local,app,data}/**/.env",
            "/{srv,opt,home,root,var/www,usr/local,app,data}/**/.env.{local,production,prod,staging}",
        ],
    },
    Rule {
        name: "application-secret",
        globs: &[
            "/{srv,opt,home,root,var/www,usr/local,app}/**/config/{master.key,credentials/*.key}",
            "/etc/gitlab/{gitlab-secrets.json,gitlab.rb}",
            "/var/lib/jenkins/{secrets/**,secret.key*,credentials.xml,identity.key.enc}",
            "/etc/{munge/munge.key,corosync/authkey,rndc.key,bind/rndc.key}",
            "/etc/bind/**/*.private",
            "/var/{cache,lib}/bind/**/*.private",
            "/etc/ceph/*.keyring",
            "/var/lib/ceph/**/keyring",
            "/etc/puppet*/**/private_keys/**",
            "/var/lib/puppet/ssl/private_keys/**",
            "/etc/salt/pki/**/*.pem",
            "/etc/ansible/vault*",
            "/etc/zabbix/*.psk",
            "/etc/rsyncd.secrets",
            "/etc/postfix/sasl_passwd*",
            "/etc/exim4/passwd.client",
            "/etc/{chrony.keys,chrony/chrony.keys,ntp.keys,ntp/keys}",
            "/etc/snmp/snmpd.conf",
            "/var/lib/{net-snmp,snmp}/snmpd.conf",
            "/etc/{cifs-credentials,samba/credentials,.smbcredentials}",
            "**/.smbcredentials",
            "/etc/{luks,cryptsetup-keys.d}/**",
            "/etc/iscsi/{iscsid.conf,initiatorname.iscsi}",
        ],
    },
    Rule {
        name: "subscription",
        globs: &[
            "/etc/pki/consumer/**",
            "/etc/pki/entitlement/**",
            "/etc/sysconfig/rhn/systemid",
            "/etc/zypp/credentials.d/**",
            "/etc/apt/auth.conf",
            "/etc/apt/auth.conf.d/**",
            "/etc/yum/vars/*{token,password}*",
        ],
    },
    Rule {
        name: "machine-identity",
        globs: &[
            "/var/lib/{dhcp,dhclient,dhcpcd,NetworkManager}/*.{lease,leases}",
            "/var/lib/NetworkManager/secret_key",
            "/etc/udev/rules.d/70-persistent-{net,cd}.rules",
        ],
    },
];

/// The rules, compiled.
pub struct Rules {
    set: GlobSet,
    names: Vec<String>,
}

impl Rules {
    /// The general rules and those that `distros` names.
    ///
    /// # Errors
    /// [`Error::Usage`] if a glob of a user's distribution file makes no sense.
    pub fn new(distros: &Distros) -> Result<Self> {
        let mut set = GlobSetBuilder::new();
        let mut names = Vec::new();
        let fixed = RULES.iter().flat_map(|r| r.globs.iter().map(|g| (r.name, *g)));
        let of_distros = distros.iter().flat_map(|d| &d.secrets);
        for (name, glob) in fixed.chain(of_distros.map(|s| (s.rule.as_str(), s.glob.as_str()))) {
            let glob = GlobBuilder::new(glob).literal_separator(true).build();
            set.add(glob.map_err(|e| Error::usage(format!("secret rule {name}: {e}")))?);
            names.push(name.to_owned());
        }
        let set = set
            .build()
            .map_err(|e| Error::usage(format!("secret rules: {e}")))?;
        Ok(Self { set, names })
    }

    /// The names of all rules, each once, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The first rule that `path` falls under.
    pub fn rule(&self, path: &GuestPath) -> Option<&str> {
        let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
        let first = self.set.matches(path).into_iter().min()?;
        self.names.get(first).map(String::as_str)
    }

    /// The files of `tree` that fall under a rule, in byte order. Empty files are no secrets, nor are files that a
    /// package brought and has a digest of.
    pub fn find(&self, tree: &Tree, packages: &[Package], owners: &Owners) -> Vec<Secret> {
        let mut found = Vec::new();
        for (path, _) in tree.iter().filter(|(_, n)| n.is_file() && n.size() > 0) {
            let Some(rule) = self.rule(path) else { continue };
            let from_package = owners.of(path).iter().any(|owner| {
                packages
                    .get(*owner)
                    .is_some_and(|p| p.digests().any(|(listed, _)| listed.name() == path.name()))
            });
            if !from_package {
                found.push(Secret {
                    rule: rule.to_owned(),
                    path: path.clone(),
                });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_find_what_they_are_for() {
        let rules = Rules::new(&Distros::load(None).unwrap()).unwrap();
        let rule = |path: &str| {
            rules
                .rule(&GuestPath::new(path.as_bytes()).unwrap())
                .map(str::to_owned)
        };
        for (path, name) in [
            ("/etc/ssh/ssh_host_ed25519_key", "ssh-host-key"),
            ("/root/.ssh/id_rsa", "ssh-private-key"),
            ("/home/a/.ssh/id_ed25519", "ssh-private-key"),
            ("/etc/shadow", "password-hash"),
            ("/etc/shadow-", "password-hash"),
            ("/etc/machine-id", "machine-id"),
            ("/root/.bash_history", "history"),
            ("/home/a/.local/share/fish/fish_history", "history"),
            ("/root/.netrc", "netrc"),
            ("/home/a/.pgpass", "database-password"),
            ("/home/a/.kube/config", "kubeconfig"),
            ("/root/.docker/config.json", "registry-credentials"),
            ("/var/lib/cloud/instances/i-1/user-data.txt", "cloud-init"),
            ("/var/lib/systemd/random-seed", "random-seed"),
            (
                "/etc/NetworkManager/system-connections/home.nmconnection",
                "wifi-key",
            ),
            ("/etc/krb5.keytab", "kerberos"),
            (
                "/etc/letsencrypt/archive/a.example/privkey1.pem",
                "tls-private-key",
            ),
            ("/etc/nginx/ssl/site.key", "tls-private-key"),
            ("/root/.aws/credentials", "cloud-credentials"),
            ("/srv/app/.env", "environment-file"),
            ("/root/.gnupg/private-keys-v1.d/AB.key", "pgp-private-key"),
        ] {
            assert_eq!(rule(path).as_deref(), Some(name), "{path}");
        }
        for path in [
            "/etc/ssh/ssh_host_ed25519_key.pub",
            "/root/.ssh/id_rsa.pub",
            "/root/.ssh/authorized_keys",
            "/etc/passwd",
            "/usr/share/doc/shadow",
            "/etc/ssl/certs/ca-certificates.crt",
        ] {
            assert_eq!(rule(path), None, "{path}");
        }
    }
}
