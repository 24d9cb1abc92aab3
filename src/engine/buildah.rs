//! Building with buildah, which needs no daemon: as a process.

use super::docker::as_new;
use super::log::Log;
use super::{Built, Request};
use crate::error::{Error, Result};
use crate::oci::{self, OpenOptions, Output};
use crate::progress::Progress;
use crate::scratch::{Cleanup, Scratch, is_alive};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// The program.
const PROGRAM: &str = "buildah";
/// The registry of names that are ours, and only for a while.
const PRIVATE: &str = "localhost/vm2k";
/// How long a build may take to end when it is told to.
const GRACE: Duration = Duration::from_secs(3);

/// True if it is installed. It is not run: it makes directories even to say its version.
pub(super) fn is_there() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(PROGRAM).is_file())
}

/// Its version, for people.
fn version() -> Result<String> {
    let text = run(&mut buildah(&["--version"]), "asking for its version")?;
    // buildah version 1.28.2 (image-spec ...)
    Ok(text
        .split(" (")
        .next()
        .unwrap_or_default()
        .trim()
        .replace(" version", ""))
}

/// buildah with `arguments`, nothing on its stdin.
fn buildah(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs it to its end and gives what it printed.
fn run(command: &mut Command, what: &str) -> Result<String> {
    let started = |e| Error::io(format!("running {PROGRAM}"), e);
    let output = command.output().map_err(started)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let cause = said
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or("it does not say why");
        return Err(Error::io(
            format!("{PROGRAM}: {what}"),
            std::io::Error::other(cause.to_owned()),
        )
        .hint("`buildah info` shows its storage; STORAGE_DRIVER=vfs works where overlay does not"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Removes containers and images of ours, after the process group `group` has ended.
fn undo(group: i32, base: &str, image: &str) {
    let pid = rustix::process::Pid::from_raw(group);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::TERM);
        let end = std::time::Instant::now() + GRACE;
        while is_alive(group) && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
    // Its containers are known by the private name of what they stand on.
    let listed = buildah(&["containers", "--format", "{{.ContainerID}} {{.ImageName}}"]).output();
    let listed = listed.map(|output| output.stdout).unwrap_or_default();
    for line in String::from_utf8_lossy(&listed).lines() {
        if let Some((id, name)) = line.split_once(' ')
            && name.trim() == base
        {
            let _ = buildah(&["rm", id]).output();
        }
    }
    for name in [image, base] {
        let _ = buildah(&["rmi", name]).output();
    }
}

/// Builds the context of `request`. Of the build nothing stays in buildah's storage.
pub(super) fn build(request: &Request<'_>, options: &OpenOptions, progress: &dyn Progress) -> Result<Built> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let name = |kind: &str| format!("{PRIVATE}-{kind}-{number}:latest");
    let (base_name, image_name) = (name("base"), name("build"));
    let version = version()?;
    let dockerfile = request.dockerfile()?;
    let work = work_dir()?;
    let group = Arc::new(AtomicI32::new(0));
    let _undo = {
        let (group, base, image) = (Arc::clone(&group), base_name.clone(), image_name.clone());
        Cleanup::new(move || undo(group.load(Ordering::SeqCst), &base, &image))
    };
    let base = request.base.filter(|_| request.builds_on_base(&dockerfile));
    if let Some(base) = base {
        // This transport takes the image's name from the archive; `oci:` would make one of the directory's.
        let archive = Output::DockerArchive {
            file: work.path().join("base.tar"),
            name: Some(base_name.clone()),
        };
        oci::write(&archive, &as_new(base), progress)?;
        let _stage = progress.stage("giving the base image to buildah", None);
        let archive = format!("docker-archive:{}", work.path().join("base.tar").display());
        run(
            buildah(&["pull", "--quiet"]).arg(archive),
            "taking the base image",
        )?;
    }
    let mut command = buildah(&["bud", "--format", "oci", "--no-cache", "--force-rm", "--rm"]);
    if rustix::process::geteuid().is_root() {
        command.args(["--isolation", "chroot"]);
    }
    if let Some(network) = request.network {
        command.args(["--network", network]);
    }
    if base.is_some() {
        command.args(["--pull=false", "--from", &base_name]);
    }
    command
        .args(["--tag", &image_name, "--file"])
        .arg(request.context.join("Dockerfile"))
        .arg(request.context);
    {
        let stage = progress.stage("building with buildah", None);
        let mut log = Log::new(request.file_name(), &dockerfile, progress);
        follow(command, &group, &mut log, &|bytes| stage.add(bytes))?;
    }
    let layout = Output::Layout {
        dir: work.path().join("built"),
        tag: Some("built".to_owned()),
    };
    let stage = progress.stage("reading the built image", None);
    // Not compressed: that is done later, as for every layer.
    run(
        buildah(&["push", "--quiet", "--disable-compression", &image_name]).arg(layout.to_string()),
        "giving out the image",
    )?;
    drop(stage);
    Ok(Built {
        image: oci::open(&layout, options, progress)?,
        engine: version,
        files: Some(work),
    })
}

/// A directory for the time of a build.
fn work_dir() -> Result<Scratch> {
    let dir = tempfile::Builder::new()
        .prefix("vm2k-build-")
        .tempdir()
        .map_err(|e| {
            Error::io(
                format!("making a directory in {}", std::env::temp_dir().display()),
                e,
            )
        })?;
    Ok(Scratch::new(dir.keep()))
}

/// Runs the build in a process group of its own and follows what it prints.
fn follow(mut command: Command, group: &AtomicI32, log: &mut Log<'_>, add: &dyn Fn(u64)) -> Result<()> {
    let started = |e| Error::io(format!("running {PROGRAM}"), e);
    let mut child: Child = command
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(started)?;
    group.store(i32::try_from(child.id()).unwrap_or_default(), Ordering::SeqCst);
    let (send, lines) = mpsc::channel::<Vec<u8>>();
    let pipes: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|pipe| Box::new(pipe) as _),
        child.stderr.take().map(|pipe| Box::new(pipe) as _),
    ];
    for pipe in pipes.into_iter().flatten() {
        let send = send.clone();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            // A line of any length comes in pieces.
            while let Ok(1..) = pipe.by_ref().take(1 << 16).read_until(b'\n', &mut line) {
                if send.send(std::mem::take(&mut line)).is_err() {
                    return;
                }
            }
        });
    }
    drop(send);
    let mut why = None;
    for line in lines {
        add(line.len() as u64);
        let text = String::from_utf8_lossy(&line);
        if let Some((number, of)) = step(&text) {
            log.step(Some(number), of);
        } else {
            if let Some(error) = text
                .strip_prefix("Error: ")
                .or_else(|| text.strip_prefix("error "))
            {
                why = Some(error.trim().to_owned());
            }
            log.print(&line);
        }
    }
    let status = child.wait().map_err(started)?;
    group.store(0, Ordering::SeqCst);
    if status.success() {
        return Ok(());
    }
    Err(log.failure(&why.unwrap_or_else(|| format!("buildah: {status}"))))
}

/// `STEP 2/5: RUN true`.
fn step(text: &str) -> Option<(usize, &str)> {
    let (count, of) = text.strip_prefix("STEP ")?.split_once(": ")?;
    let number = count.split('/').next()?;
    Some((number.parse().ok()?, of.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        assert_eq!(step("STEP 2/13: RUN a: b\n"), Some((2, "RUN a: b")));
        assert_eq!(step("STEP x: RUN"), None);
        let work = work_dir().unwrap();
        let path = work.path().to_owned();
        assert!(path.is_dir());
        drop(work);
        assert!(!path.exists());
    }
}
