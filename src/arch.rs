//! Architectures in the words of OCI, and the one of a machine from the headers of its programs (System V ABI, ELF
//! header).

use crate::bytes::{array, be16, be32, le16, le32, u8_at};
use crate::error::Result;
use crate::path::GuestPath;
use crate::source::Source;

/// An architecture in the words of the OCI image specification (those of Go).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Arch {
    /// `amd64`, `arm64`, `arm`, `386`, `ppc64le`, ...
    pub architecture: &'static str,
    /// `v5`, `v6` or `v7`, for `arm`.
    pub variant: Option<&'static str>,
}

impl std::fmt::Display for Arch {
    /// `amd64`, `arm/v7`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.architecture)?;
        self.variant.map_or(Ok(()), |v| write!(f, "/{v}"))
    }
}

impl serde::Serialize for Arch {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Programs that nearly every machine has.
const PROGRAMS: &[&str] = &[
    "/bin/sh",
    "/bin/bash",
    "/bin/busybox",
    "/sbin/init",
    "/usr/bin/env",
    "/bin/ls",
    "/lib/systemd/systemd",
    "/usr/sbin/sshd",
];

/// Folders to look for any program in, where none of [`PROGRAMS`] is there.
const FOLDERS: &[&str] = &["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"];

/// How many files of a folder are looked at.
const TRIES: usize = 64;

/// The architecture of the first program that says one; `None` if none does. Programs that cannot be read are passed
/// over.
pub fn of_machine(source: &dyn Source) -> Option<Arch> {
    for path in PROGRAMS {
        if let Some((_, node)) = source.tree().find(path)
            && node.is_file()
            && let Ok(Some(arch)) = of_file(source, node)
        {
            return Some(arch);
        }
    }
    for folder in FOLDERS {
        let Some((dir, _)) = source.tree().find(folder) else {
            continue;
        };
        for (_, node) in source
            .tree()
            .children(&dir)
            .filter(|(_, n)| n.is_file())
            .take(TRIES)
        {
            if let Ok(Some(arch)) = of_file(source, node) {
                return Some(arch);
            }
        }
    }
    None
}

/// The architecture of the program at `path`, symlinks followed.
///
/// # Errors
/// As the source's reader.
pub fn of_path(source: &dyn Source, path: &GuestPath) -> Result<Option<Arch>> {
    let found = source.tree().resolve(path, true).ok();
    match found.and_then(|p| source.tree().get(&p)) {
        Some(node) if node.is_file() => of_file(source, node),
        _ => Ok(None),
    }
}

fn of_file(source: &dyn Source, node: &crate::tree::Node) -> Result<Option<Arch>> {
    let mut header = [0; 64];
    if node.size() < header.len() as u64 {
        return Ok(None);
    }
    let file = source.open(node.id)?;
    if file.len() < header.len() as u64 {
        return Ok(None);
    }
    file.read_at(0, &mut header)?;
    Ok(of_header(&header))
}

/// The architecture that an ELF header (its first 52 bytes suffice) states.
pub fn of_header(header: &[u8]) -> Option<Arch> {
    if array::<4>(header, 0)? != *b"\x7fELF" {
        return None;
    }
    // EI_CLASS and EI_DATA.
    let wide = match u8_at(header, 4)? {
        1 => false,
        2 => true,
        _ => return None,
    };
    let little = match u8_at(header, 5)? {
        1 => true,
        2 => false,
        _ => return None,
    };
    let e_machine = if little {
        le16(header, 18)?
    } else {
        be16(header, 18)?
    };
    let flags_at = if wide { 48 } else { 36 };
    let e_flags = if little {
        le32(header, flags_at)?
    } else {
        be32(header, flags_at)?
    };
    let architecture = match (e_machine, wide, little) {
        (62, _, true) => "amd64",       // EM_X86_64
        (3, false, true) => "386",      // EM_386
        (183, true, true) => "arm64",   // EM_AARCH64
        (40, false, true) => "arm",     // EM_ARM
        (21, true, true) => "ppc64le",  // EM_PPC64
        (21, true, false) => "ppc64",   // EM_PPC64
        (20, false, false) => "ppc",    // EM_PPC
        (22, true, false) => "s390x",   // EM_S390
        (22, false, false) => "s390",   // EM_S390
        (243, true, true) => "riscv64", // EM_RISCV
        (258, true, true) => "loong64", // EM_LOONGARCH
        (8, true, true) => "mips64le",  // EM_MIPS
        (8, true, false) => "mips64",   // EM_MIPS
        (8, false, true) => "mipsle",   // EM_MIPS
        (8, false, false) => "mips",    // EM_MIPS
        (43, true, false) => "sparc64", // EM_SPARCV9
        _ => return None,
    };
    // EF_ARM_ABI_FLOAT_HARD: distributions of the hard-float ABI are built for ARMv7, those of the soft one for ARMv5.
    let variant = (architecture == "arm").then_some(if e_flags & 0x400 != 0 { "v7" } else { "v5" });
    Some(Arch {
        architecture,
        variant,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The first 64 bytes of a program.
    pub(crate) fn header(class: u8, data: u8, machine: u16, flags: u32) -> Vec<u8> {
        let mut h = vec![0; 64];
        h[..4].copy_from_slice(b"\x7fELF");
        (h[4], h[5]) = (class, data);
        let at = if class == 2 { 48 } else { 36 };
        if data == 1 {
            h[18..20].copy_from_slice(&machine.to_le_bytes());
            h[at..at + 4].copy_from_slice(&flags.to_le_bytes());
        } else {
            h[18..20].copy_from_slice(&machine.to_be_bytes());
            h[at..at + 4].copy_from_slice(&flags.to_be_bytes());
        }
        h
    }

    #[test]
    fn architectures() {
        let name = |c, d, m, f| of_header(&header(c, d, m, f)).map(|a| a.to_string());
        assert_eq!(name(2, 1, 62, 0).as_deref(), Some("amd64"));
        assert_eq!(name(2, 1, 183, 0).as_deref(), Some("arm64"));
        assert_eq!(name(1, 1, 40, 0x0500_0400).as_deref(), Some("arm/v7"));
        assert_eq!(name(1, 1, 40, 0x0500_0200).as_deref(), Some("arm/v5"));
        assert_eq!(name(2, 2, 22, 0).as_deref(), Some("s390x"));
        assert_eq!(name(2, 1, 8, 0).as_deref(), Some("mips64le"));
        assert_eq!(name(2, 1, 62_000, 0), None);
        assert_eq!(name(3, 1, 62, 0), None);
        assert_eq!(of_header(b"\x7fELF"), None);
        assert_eq!(of_header(b"#!/bin/sh"), None);
    }
}
