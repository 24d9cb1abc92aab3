//! Embeds `distros/*.toml`: writes `distros.rs`, the list of (file name, content), in byte order of the names.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=distros");
    let variable = |name| env::var(name).map_err(io::Error::other);
    let mut files = Vec::new();
    for entry in fs::read_dir(Path::new(&variable("CARGO_MANIFEST_DIR")?).join("distros"))? {
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
    fs::write(
        Path::new(&variable("OUT_DIR")?).join("distros.rs"),
        format!("&[\n{rows}]\n"),
    )
}
