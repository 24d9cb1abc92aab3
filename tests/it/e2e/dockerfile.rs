//! Build contexts of real disks, built with real engines. What differs from the machine afterwards must be explained.

use super::strategy::Docker;
use super::*;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Storage of buildah for one test.
struct Buildah {
    dir: tempfile::TempDir,
}

impl Buildah {
    fn new() -> Self {
        Self {
            dir: tempfile::Builder::new()
                .prefix("buildah.")
                .tempdir_in(shared_dir())
                .unwrap(),
        }
    }
    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        let path = |name: &str| self.dir.path().join(name);
        command
            .arg("--root")
            .arg(path("root"))
            .arg("--runroot")
            .arg(path("run"));
        command.args(["--storage-driver", "vfs"]);
        command
    }
    /// `oci:DIR:TAG` under a name.
    fn load(&self, layout: &str, name: &str) {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let storage = format!("containers-storage:[vfs@{}+{}]{name}", path("root"), path("run"));
        run(Command::new("skopeo").args(["copy", "-q", layout, &storage]));
    }
    fn build(&self, context: &Path, name: &str) -> Output {
        self.command("buildah")
            .args([
                "bud",
                "--isolation",
                "chroot",
                "--network",
                "host",
                "--layers=false",
                "-t",
                name,
            ])
            .arg(context)
            .output()
            .unwrap()
    }
    fn save(&self, name: &str, layout: &str) {
        run(self.command("buildah").args(["push", "-q", name, layout]));
    }
}

impl Drop for Buildah {
    fn drop(&mut self) {
        // Layers hold files that only their owner may remove.
        let _ = self.command("buildah").args(["rmi", "-a", "-f"]).output();
    }
}

/// True if the mirror of the machine's distribution answers; else the test is skipped by name.
fn mirror(test: &str) -> bool {
    let there = Command::new("curl")
        .args([
            "-sf",
            "-m",
            "20",
            "-o",
            "/dev/null",
            "http://deb.debian.org/debian/dists/bookworm/Release",
        ])
        .status();
    let there = there.is_ok_and(|s| s.success());
    if !there {
        eprintln!("SKIPPED {test}: no mirror answers");
    }
    there
}

/// The context of a disk, whose report names the base, made in `work`.
fn context_of(machine: &Machine, work: &Work) -> (PathBuf, Value) {
    let context = work.path("out/context");
    let report = ended(
        work.vm2k(["dockerfile".as_ref(), machine.qcow2().as_os_str()])
            .args(["--base", &machine.base(), "--json", "-o"])
            .arg(&context),
    );
    let report = report.expect(0).json();
    let count = |rung: &str| report["rungs"][rung].as_u64().unwrap_or(0);
    assert!(count("live") > 20 && count("base") > 50, "{}", report["rungs"]);
    assert_eq!(
        count("base") + count("live") + count("rest") + count("archive") + count("apart"),
        report["packages"].as_array().unwrap().len() as u64
    );
    for package in report["packages"].as_array().unwrap() {
        assert!(!package["why"].as_str().unwrap().is_empty(), "{package}");
    }
    (context, report)
}

/// Fails unless `vm2k verify --json` of a built context names only what ADD cannot carry: times, and the attributes that
/// `lost` says. A path that only one side has is never explained.
fn equals(verify: &Ended, by: &str, lost: &[&str]) {
    let report = verify.expect(3).json();
    let differences = report["differences"].as_array().unwrap();
    let explained = |difference: &Value| {
        let path = difference["path"].as_str().unwrap();
        let fields = difference["fields"].as_array().unwrap();
        let mut fields = fields.iter().map(|f| f.as_str().unwrap());
        difference["what"] == "differs"
            && fields.all(|f| f == "mtime" || (f == "xattrs" && lost.iter().any(|dir| path.starts_with(dir))))
    };
    let unexplained: Vec<&Value> = differences.iter().filter(|d| !explained(d)).collect();
    let compared = report["compared"].as_u64().unwrap();
    eprintln!("{by}: {} of {compared} paths differ", differences.len());
    assert!(unexplained.is_empty(), "{by}: {unexplained:#?}");
    assert!(compared > 5000, "{compared}");
    assert_eq!(report["unread"], Value::Array(Vec::new()));
}

#[test]
fn a_context_of_a_disk_builds_and_gives_the_machine() {
    let test = "a_context_of_a_disk_builds_and_gives_the_machine";
    if !support::tools(test, &["buildah", "skopeo", "curl"]) || !support::root(test) || !mirror(test) {
        return;
    }
    let Some(machine) = machine(test, "small") else {
        return;
    };
    let work = Work::new();
    let (context, report) = context_of(machine, &work);
    let buildah = Buildah::new();
    buildah.load(&machine.base(), report["from"].as_str().unwrap());
    let built = buildah.build(&context, "localhost/built:t");
    assert!(
        built.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&built.stdout),
        String::from_utf8_lossy(&built.stderr)
    );
    let image = work.output("oci", "built:t");
    buildah.save("localhost/built:t", &image);
    let verify = ended(
        work.vm2k(["verify".as_ref(), machine.qcow2().as_os_str()])
            .args([&image, "--json"]),
    );
    equals(&verify, "buildah", &["/srv/hard/acl/"]);
    let config = run(Command::new("skopeo").args(["inspect", "--config", &image]));
    let config = json(&config.stdout);
    let title = &config["config"]["Labels"]["org.opencontainers.image.title"];
    assert_eq!(title.as_str().unwrap(), machine.fact("hostname"));
}

/// The docker commands on the path that build with `builder` (`1`: BuildKit): newer ones need a plugin for that.
fn client(builder: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::env::split_paths(&path).map(|d| d.join("docker"));
    all.find(|docker| {
        let said = Command::new(docker)
            .args(["build", "--help"])
            .env("DOCKER_BUILDKIT", builder)
            .output();
        said.is_ok_and(|o| {
            let buildkit = String::from_utf8_lossy(&o.stdout).contains("--secret");
            o.status.success() && (builder == "0" || buildkit)
        })
    })
}

#[test]
fn docker_build_gives_the_machine() {
    let test = "docker_build_gives_the_machine";
    if !support::tools(test, &["docker", "dockerd", "skopeo", "curl"])
        || !support::root(test)
        || !mirror(test)
    {
        return;
    }
    let Some(machine) = machine(test, "small") else {
        return;
    };
    let work = Work::new();
    let (context, report) = context_of(machine, &work);
    let docker = Docker::start(&work);
    let from = report["from"].as_str().unwrap();
    run(Command::new("skopeo")
        .args([
            "copy",
            "-q",
            "--dest-daemon-host",
            &docker.host(),
            &machine.base(),
        ])
        .arg(format!("docker-daemon:{from}")));
    for (builder, by) in [("0", "classic"), ("1", "BuildKit")] {
        let Some(client) = client(builder) else {
            support::skip(test, &format!("a docker command that builds with {by}"));
            continue;
        };
        let name = format!("vm2k-test/{}:1", by.to_lowercase());
        let built = run(Command::new(client)
            .args([
                "--host",
                &docker.host(),
                "build",
                "--network",
                "host",
                "--tag",
                &name,
            ])
            .arg(&context)
            .env("DOCKER_BUILDKIT", builder));
        let said = [built.stdout, built.stderr].concat();
        let classic = String::from_utf8_lossy(&said).contains("Successfully built");
        assert_eq!(classic, builder == "0", "{}", String::from_utf8_lossy(&said));
        let verify = ended(
            work.vm2k(["verify".as_ref(), machine.qcow2().as_os_str()])
                .args([&format!("docker-daemon:{name}"), "--json"])
                .env("DOCKER_HOST", docker.host()),
        );
        equals(&verify, by, &["/srv/hard/acl/", "/srv/hard/xattr"]);
    }
}

#[test]
fn hostile_names_are_deleted_and_run_nothing() {
    let test = "hostile_names_are_deleted_and_run_nothing";
    if !support::tools(test, &["buildah", "skopeo"]) || !support::root(test) {
        return;
    }
    let Some(machine) = machine(test, "small") else {
        return;
    };
    let work = Work::new();
    let buildah = Buildah::new();
    buildah.load(&machine.base(), "localhost/plain");
    let names: [&[u8]; 10] = [
        b"a b",
        b"$(touch pwned)",
        b"`touch pwned`",
        b"'; touch pwned; '",
        b"\"; touch pwned; \"",
        b"line\nRUN touch pwned\n",
        b"-rf",
        b"{{#each x}}",
        b"caf\xe9\xff",
        b"back\\slash\\",
    ];
    // The base has these files; the machine is the same tree without them.
    let from = run(buildah.command("buildah").args(["from", "-q", "localhost/plain"]));
    let container = String::from_utf8(from.stdout).unwrap().trim().to_owned();
    let mounted = run(buildah.command("buildah").args(["mount", &container]));
    let root = PathBuf::from(String::from_utf8(mounted.stdout).unwrap().trim());
    let machine_dir = work.path("machine");
    run(Command::new("cp").arg("-a").arg(&root).arg(&machine_dir));
    std::fs::set_permissions(&machine_dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(root.join("hostile")).unwrap();
    std::fs::create_dir_all(machine_dir.join("hostile")).unwrap();
    for name in names {
        std::fs::write(root.join("hostile").join(OsStr::from_bytes(name)), "x").unwrap();
    }
    let kept: [&[u8]; 2] = [b"kept $(touch pwned)\n", b"kept\xff"];
    for name in kept {
        std::fs::write(machine_dir.join("hostile").join(OsStr::from_bytes(name)), "mine").unwrap();
    }
    std::fs::write(machine_dir.join("etc/hostname"), "syntax=evil$(id)\n").unwrap();
    run(buildah
        .command("buildah")
        .args(["commit", "-q", &container, "localhost/hostile"]));
    run(buildah.command("buildah").args(["rm", &container]));
    let base = work.output("oci", "base:t");
    buildah.save("localhost/hostile", &base);
    run(Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(work.path("out/base")));
    let context = work.path("out/context");
    // As root: a directory is read as its files allow.
    let report = ended(
        Command::new(program())
            .arg("dockerfile")
            .arg(format!("dir:{}", machine_dir.display()))
            .args(["--base", &base, "--offline", "--json", "-o"])
            .arg(&context)
            .env("VM2K_STORE", work.path("store2")),
    );
    let report = report.expect(0).json();
    assert_eq!(
        report["rungs"]["live"],
        Value::Null,
        "the packages are those of the base"
    );
    buildah.load(&base, report["from"].as_str().unwrap());
    let built = buildah.build(&context, "localhost/built:t");
    let text = std::fs::read_to_string(context.join("Dockerfile")).unwrap();
    assert!(
        built.status.success(),
        "{}\n{text}",
        String::from_utf8_lossy(&built.stderr)
    );
    let from = run(buildah
        .command("buildah")
        .args(["from", "-q", "localhost/built:t"]));
    let container = String::from_utf8(from.stdout).unwrap().trim().to_owned();
    let mounted = run(buildah.command("buildah").args(["mount", &container]));
    let root = PathBuf::from(String::from_utf8(mounted.stdout).unwrap().trim());
    assert!(!root.join("pwned").exists(), "{text}");
    let mut left: Vec<Vec<u8>> = std::fs::read_dir(root.join("hostile"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_vec())
        .collect();
    left.sort();
    assert_eq!(left, kept.map(<[u8]>::to_vec), "{text}");
    assert!(!root.join(".vm2k-deleted").exists());
    run(buildah.command("buildah").args(["rm", &container]));
}
