use super::*;

const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   105        0 20001 1 0000000000000000 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20002 1 0000000000000000 100 0 0 10 0
   2: 0F02000A:0016 0202000A:D5FE 01 00000000:00000000 02:0009D8A6 00000000     0        0 20003 4 0000000000000000 20 4 31 10 -1
";
const TCP6: &str = "  sl  local_address                         remote_address                        st ...
   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20004 1 0
";
const UDP: &str = "   sl  local_address rem_address   st ...
  99: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 20005 2 0000000000000000 0
 100: 0F02000A:8001 08080808:0035 01 00000000:00000000 00:00000000 00000000   100        0 20006 2 0000000000000000 0
";
const UNIX: &str = "Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 20007 /run/my app.sock
0000000000000000: 00000002 00000000 00010000 0001 01 20008 @abstract
0000000000000000: 00000003 00000000 00000000 0001 03 20009 /run/connected
0000000000000000: 00000002 00000000 00000000 0002 01 20010
";

fn host() -> SavedProc {
    let mut proc = SavedProc::new(false);
    proc.file("net/tcp", TCP);
    proc.file("net/tcp6", TCP6);
    proc.file("net/udp", UDP);
    proc.file("net/unix", UNIX);
    proc.symlink("1/root", "/");
    proc.file("1/status", "Name:\tsystemd\nPPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nVmSize:\t  1 kB\nVmRSS:\t  12 kB\nThreads:\t1\n");
    proc.file("1/cmdline", "/sbin/init\0");
    proc.file("1/cgroup", "0::/init.scope\n");
    proc.file("2/status", "Name:\tkthreadd\nPPid:\t0\nUid:\t0\t0\t0\t0\n");
    proc.file("2/cmdline", "");
    proc.file(
        "300/status",
        "Name:\tnginx\nPPid:\t1\nUid:\t33\t33\t33\t33\nGid:\t34\t33\t33\t33\nVmSize:\t 9 kB\n",
    );
    proc.file("300/cmdline", "nginx: master process /usr/sbin/nginx\0\0\0\0");
    proc.file("300/environ", "PATH=/bin\0TOKEN=a=b\0novalue\0=x\0");
    proc.file(
        "300/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max cpu time              unlimited            unlimited            seconds   \n\
         Max open files            1024                 524288               files     \n\
         Max core file size        0                    unlimited            bytes     \n",
    );
    proc.file(
        "300/cgroup",
        "12:cpu:/x\n1:name=systemd:/system.slice/nginx.service\n0::/\n",
    );
    proc.symlink("300/root", "/");
    proc.symlink("300/cwd", "/var/www");
    proc.symlink("300/exe", "/usr/sbin/nginx (deleted)");
    for (fd, inode) in [(5, 20002), (6, 20004), (7, 20007)] {
        proc.symlink(&format!("300/fd/{fd}"), format!("socket:[{inode}]"));
    }
    proc.symlink("300/fd/8", "/var/lib/mysql/ibdata1");
    proc.file(
        "300/fdinfo/8",
        "pos:\t0\nflags:\t0100002\nmnt_id:\t25\nino:\t77\n",
    );
    proc.symlink("300/fd/9", "/var/lib/mysql/errors");
    proc.file(
        "300/fdinfo/9",
        "pos:\t0\nflags:\t0100000\nmnt_id:\t25\nino:\t78\n",
    );
    proc.symlink("300/fd/10", "/var/lib/dpkg/lock-frontend");
    proc.file("300/fdinfo/10", "pos:\t0\nflags:\t0100000\nino:\t79\n");
    proc.symlink("300/fd/11", "/var/lib/mysqlother/x");
    proc.file("300/fdinfo/11", "flags:\t02\n");
    proc.file(
        "locks",
        "1: POSIX  ADVISORY  WRITE 300 fd:00:79 0 EOF\n2: OFDLCK ADVISORY  READ  -1 00:05:8 0 EOF\n",
    );
    let id = "ab".repeat(32);
    proc.file("400/status", "Name:\tredis\nPPid:\t1\nVmSize:\t 9 kB\n");
    proc.file("400/cmdline", "redis-server\0*:6379\0");
    proc.file("400/cgroup", format!("0::/system.slice/docker-{id}.scope\n"));
    proc.symlink("400/root", "/var/lib/docker/overlay2/x/merged");
    proc.file(
        "self/mountinfo",
        "21 26 0:19 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
         26 1 254:1 / / rw,relatime shared:1 master:2 - ext4 /dev/vda1 rw,errors=remount-ro\n\
         90 26 254:1 /srv/a\\040b /mnt\\134x rw - ext4 /dev/vda1 rw\nbroken\n",
    );
    proc.file("meminfo", "MemTotal:        2048 kB\nMemAvailable:   1024 kB\n");
    proc.file(
        "stat",
        "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nintr 1\n",
    );
    proc.file("uptime", "1234.56 2000.00\n");
    proc.file("loadavg", "0.50 0.25 0.10 1/100 999\n");
    proc.file("sys/kernel/osrelease", "6.1.0-18-amd64\n");
    proc
}

fn ask() -> Ask {
    Ask {
        with_env: false,
        watch: vec!["/var/lib/mysql".into(), "/var/lib/dpkg/lock-frontend".into()],
    }
}

#[test]
fn sockets_that_wait_are_told_with_their_processes() {
    let live = collect(&host(), &ask());
    let rows: Vec<String> = live
        .listening
        .iter()
        .map(|l| {
            format!(
                "{} {} {:?} {:?} {:?}",
                l.protocol, l.address, l.port, l.uid, l.pids
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            "tcp 0.0.0.0 Some(80) Some(0) [300]",
            "tcp ::1 Some(80) Some(0) [300]",
            "tcp 127.0.0.1 Some(5432) Some(105) []",
            "udp 0.0.0.0 Some(68) Some(0) []",
            "unix /run/my app.sock None None [300]",
            "unix @abstract None None []",
        ]
    );
}

#[test]
fn addresses_are_read_in_the_hosts_order_of_bytes() {
    let mut proc = SavedProc::new(true);
    proc.file("net/tcp", TCP.replace("0100007F", "7F000001"));
    let live = collect(&proc, &ask());
    assert!(live.listening.iter().any(|l| l.address == "127.0.0.1"));
}

#[test]
fn processes_are_told_without_the_kernels_threads() {
    let live = collect(&host(), &ask());
    assert_eq!(
        live.processes.iter().map(|p| p.pid).collect::<Vec<_>>(),
        [1, 300, 400]
    );
    let nginx = &live.processes[1];
    assert_eq!(nginx.argv, ["nginx: master process /usr/sbin/nginx"]);
    assert_eq!((nginx.uid, nginx.gid), (Some(33), Some(33)));
    assert_eq!(nginx.unit.as_deref(), Some("nginx.service"));
    assert_eq!(nginx.cwd.as_deref(), Some("/var/www"));
    assert_eq!(nginx.root, None);
    let limits: Vec<_> = nginx
        .limits
        .iter()
        .map(|l| (l.name.as_str(), l.soft, l.hard))
        .collect();
    assert_eq!(
        limits,
        [
            ("Max open files", Some(1024), Some(524_288)),
            ("Max core file size", Some(0), None)
        ]
    );
    let env = nginx.environment.as_ref().unwrap();
    assert_eq!(env.keys().collect::<Vec<_>>(), ["PATH", "TOKEN"]);
    assert!(env.values().all(Option::is_none), "values were not asked for");
    let with = collect(
        &host(),
        &Ask {
            with_env: true,
            ..ask()
        },
    );
    let env = with.processes[1].environment.clone().unwrap();
    assert_eq!(env["TOKEN"].as_deref(), Some("a=b"));
    assert_eq!(live.processes[0].memory, Some(12 << 10));
    assert_eq!(live.unseen, 2, "two processes show no descriptors");
}

#[test]
fn containers_that_run_are_named() {
    let live = collect(&host(), &ask());
    let id = "ab".repeat(32);
    assert_eq!(live.processes[2].container, Some(format!("docker:{id}")));
    assert_eq!(
        live.processes[2].root.as_deref(),
        Some("/var/lib/docker/overlay2/x/merged")
    );
    let [one] = live.containers.as_slice() else {
        panic!("{:?}", live.containers);
    };
    assert_eq!(
        (
            one.kind.as_str(),
            one.id.as_str(),
            one.processes,
            one.command.as_str()
        ),
        ("docker", id.as_str(), 1, "redis")
    );
    for (path, kind) in [
        (format!("/docker/{id}"), "docker"),
        (format!("/machine.slice/libpod-{id}.scope/container"), "podman"),
        (
            format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
            "containerd",
        ),
        (format!("/kubepods/besteffort/pod1/{id}"), "containerd"),
        (format!("/crio-{id}.scope"), "cri-o"),
        ("/lxc.payload.web".to_owned(), "lxc"),
        ("/lxc/web/init.scope".to_owned(), "lxc"),
        ("/machine.slice/machine-my\\x2dbox.scope".to_owned(), "machine"),
    ] {
        let mut proc = host();
        proc.file("400/cgroup", format!("0::{path}\n"));
        let live = collect(&proc, &ask());
        assert_eq!(
            live.containers.first().map(|c| c.kind.as_str()),
            Some(kind),
            "{path}"
        );
    }
}

#[test]
fn files_that_are_watched_are_told_if_they_are_written_or_locked() {
    let live = collect(&host(), &ask());
    let rows: Vec<_> = live
        .open
        .iter()
        .map(|o| (o.path.as_str(), o.pid, o.locked))
        .collect();
    assert_eq!(
        rows,
        [
            ("/var/lib/dpkg/lock-frontend", 300, true),
            ("/var/lib/mysql/ibdata1", 300, false)
        ]
    );
}

#[test]
fn mounts_memory_and_processors() {
    let live = collect(&host(), &ask());
    let rows: Vec<_> = live
        .mounts
        .iter()
        .map(|m| (m.at.as_str(), m.kind.as_str(), m.root.as_str()))
        .collect();
    assert_eq!(
        rows,
        [
            ("/sys", "sysfs", "/"),
            ("/", "ext4", "/"),
            ("/mnt\\x", "ext4", "/srv/a b")
        ]
    );
    assert_eq!(live.mounts[1].options, "rw,relatime,errors=remount-ro");
    assert_eq!(live.memory.total, Some(2 << 20));
    assert_eq!(live.memory.swap_total, None);
    assert_eq!((live.cpus, live.cpu_busy), (Some(2), Some(0.2)));
    assert_eq!((live.uptime, live.load), (Some(1234), Some([0.5, 0.25, 0.1])));
    assert_eq!(live.kernel.release.as_deref(), Some("6.1.0-18-amd64"));
}

#[test]
fn nothing_there_is_nothing_known() {
    assert_eq!(collect(&SavedProc::default(), &Ask::default()), Live::default());
}

/// The host that runs the test: what its own files say, and the shape of the wire.
#[test]
fn this_host() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("written");
    let _open = std::fs::File::create(&path).unwrap();
    /// As another program sees this one.
    struct Other(HostProc);
    impl Proc for Other {
        fn read(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
            self.0.read(path, limit)
        }
        fn link(&self, path: &str) -> Option<Vec<u8>> {
            self.0.link(path)
        }
        fn list(&self, path: &str) -> Option<Vec<String>> {
            self.0.list(path)
        }
    }
    let ask = Ask {
        with_env: false,
        watch: vec![dir.path().to_str().unwrap().to_owned()],
    };
    let live = collect(&Other(HostProc::default()), &ask);
    let me = std::process::id();
    let mine = live.processes.iter().find(|p| p.pid == me).expect("this process");
    assert_eq!(mine.cwd.as_deref(), std::env::current_dir().unwrap().to_str());
    assert_eq!(mine.exe.as_deref(), std::env::current_exe().unwrap().to_str());
    assert_eq!(mine.argv, std::env::args().collect::<Vec<_>>());
    let port = listener.local_addr().unwrap().port();
    let socket = live
        .listening
        .iter()
        .find(|l| l.port == Some(port))
        .expect("the test's socket");
    assert_eq!(
        (socket.protocol.as_str(), socket.address.as_str()),
        ("tcp", "127.0.0.1")
    );
    assert!(socket.pids.contains(&me));
    assert!(
        live.open
            .iter()
            .any(|o| o.path == path.to_str().unwrap() && o.pid == me && !o.locked)
    );
    assert!(live.mounts.iter().any(|m| m.at == "/") && live.memory.total.is_some() && live.cpus.is_some());
    assert!(
        collect(&HostProc::default(), &ask)
            .processes
            .iter()
            .all(|p| p.pid != me)
    );
    let text = serde_json::to_vec(&live).unwrap();
    assert_eq!(
        serde_json::from_slice::<Live>(&text).unwrap().listening,
        live.listening
    );
}
