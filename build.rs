//! What is made while vm2k is built:
//!
//! - `distros.rs`, the list of (file name, content) of `distros/*.toml`, in byte order of the names;
//! - `vm2k-agent`, this same package without its feature `full`, linked statically: what is sent to a host over ssh. It is empty
//!   where it cannot be linked, with a warning, and with VM2K_AGENT_BUILD=no. VM2K_AGENT_BUILD=FILE takes a finished one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    // The agent itself embeds nothing.
    if env::var_os("CARGO_FEATURE_FULL").is_none() {
        println!("cargo:rerun-if-changed=build.rs");
        return Ok(());
    }
    let out = PathBuf::from(variable("OUT_DIR")?);
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    distros(&package, &out)?;
    agent(&package, &out)
}

fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(io::Error::other)
}

fn distros(package: &Path, out: &Path) -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=distros");
    let mut files = Vec::new();
    for entry in fs::read_dir(package.join("distros"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
    files.sort();
    let mut rows = String::new();
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let content = path.display().to_string();
        rows.push_str(&format!("    ({name:?}, include_str!({content:?})),\n"));
    }
    fs::write(out.join("distros.rs"), format!("&[\n{rows}]\n"))
}

fn agent(package: &Path, out: &Path) -> io::Result<()> {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=Cargo.lock");
    println!("cargo:rerun-if-env-changed=VM2K_AGENT_BUILD");
    let embedded = out.join("vm2k-agent");
    match env::var_os("VM2K_AGENT_BUILD") {
        Some(no) if no == "no" => return fs::write(embedded, []),
        Some(file) => return fs::copy(file, embedded).map(drop),
        None => {}
    }
    match build_agent(package, out) {
        Ok(built) => fs::copy(built, embedded).map(drop),
        Err(why) => {
            println!(
                "cargo:warning=the agent for hosts cannot be built, hosts will be read without it: {why}"
            );
            fs::write(embedded, [])
        }
    }
}

/// Runs cargo once more, in a directory of its own. All crates are there already, and none is fetched.
fn build_agent(package: &Path, out: &Path) -> io::Result<PathBuf> {
    let target = variable("TARGET")?;
    let dir = out.join("agent");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(package)
        .args(["build", "--quiet", "--offline", "--bin", "vm2k-agent"])
        .args([
            "--no-default-features",
            "--features",
            "agent",
            "--profile",
            "agent",
        ])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&dir);
    if package.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    // What the outer build was told, its features, or sanitizers for example, is not for the agent; nor are clippy and its like.
    let kept = ["CARGO_HOME", "CARGO_MAKEFLAGS", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];
    for (name, _) in env::vars_os() {
        let of_cargo = ["CARGO", "RUST", "CLIPPY"];
        let name = name.to_string_lossy().into_owned();
        if of_cargo.iter().any(|p| name.starts_with(p)) && !kept.contains(&name.as_str()) {
            cargo.env_remove(name);
        }
    }
    // Names of directories of this machine have no place in a program.
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={}=vm2k", package.display()),
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    let done = cargo.output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let line = said
            .lines()
            .find(|l| l.starts_with("error"))
            .unwrap_or("cargo failed");
        return Err(io::Error::other(line.to_owned()));
    }
    Ok(dir.join(target).join("agent").join("vm2k-agent"))
}
