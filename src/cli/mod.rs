//! The command line: one file a subcommand; arguments become options, one library call, and what it returns is printed.
//!
//! stdout carries the result, stderr progress, warnings and errors. One table of arguments stands behind the parser, the
//! help, the man pages and the completions.

mod cat;
mod convert;
mod decisions;
mod diff;
mod dockerfile;
mod hosts;
mod keys;
mod ls;
mod pages;
mod patch;
mod plan;
mod roots;
mod scan;
mod ssh;
mod strategy;
mod target;
mod text;
mod ui;
mod verify;

use crate::error::{code, exit_code, report};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  vm2k scan disk.qcow2                            what is in the machine
  vm2k convert disk.qcow2                         make ./<hostname>.tar, which docker, podman and skopeo load
  vm2k convert disk.qcow2 --base oci:base:12   -o oci:images:web
  vm2k verify disk.qcow2 oci-archive:web.tar      compare every file of machine and image

TARGET is a disk file (several disks of one machine: disk1.qcow2+disk2.qcow2), dir:PATH, or a running host: user@host or
ssh://user@host:port/DIRECTORY; ls, cat and diff also take images.
IMAGE is oci:DIR[:TAG], oci-archive:FILE[:REF], docker-archive:FILE[:REF], docker-daemon:REF or docker://REF.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but something was skipped or differs and is listed; 4 refused by a gate;
5 input corrupt; 6 input not supported; 7 network or host failed; 130 interrupted.";

/// Turns a virtual machine into a container image, without root, mount or daemon, and proves the result.
#[derive(Debug, Parser)]
#[command(name = "vm2k", version, after_help = EXAMPLES, max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options of every subcommand.
#[derive(Debug, Args)]
struct Common {
    /// Where base images and results of earlier conversions are kept [default: ~/.local/share/vm2k]
    #[arg(long, global = true, value_name = "DIR", env = "VM2K_STORE")]
    store: Option<PathBuf>,
    /// Threads to use [default: one for each core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// No progress and no warnings on stderr
    #[arg(long, short, global = true)]
    quiet: bool,
    /// More about what was found and decided, on stderr
    #[arg(long, short, global = true)]
    verbose: bool,
    /// Allow disk images to name backing and data files in this directory too
    #[arg(long, global = true, value_name = "DIR")]
    allow_backing: Vec<PathBuf>,
    /// Which filesystem is the machine's root, where there are several: a device as `vm2k ls` names it, a UUID or a label;
    /// a subvolume of it with :SUBVOLUME behind it
    #[arg(long, global = true, value_name = "DEVICE")]
    root: Option<String>,
    /// Open encrypted volumes with the key or passphrase in this file (- for stdin); without it the passphrase is asked for
    /// on a terminal
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Vec<PathBuf>,
    /// Read snapshots too, that lie inside a btrfs subvolume, and not only what they were made of
    #[arg(long, global = true)]
    snapshots: bool,
    /// More descriptions of distributions, besides the built-in ones
    #[arg(long, global = true, value_name = "DIR")]
    distros: Option<PathBuf>,
    /// Use no network
    #[arg(long, global = true)]
    offline: bool,
    /// Send no agent to a host: only what find, stat and tar tell, without extended attributes
    #[arg(long, global = true)]
    agentless: bool,
    /// On a host, read the password for sudo from stdin
    #[arg(long, global = true)]
    sudo_password_stdin: bool,
    /// On a host, stay on the filesystem of its root
    #[arg(long, global = true)]
    one_file_system: bool,
    /// The most bytes a second that a host sends, as in 10M
    #[arg(long, global = true, value_name = "RATE", value_parser = target::parse_rate)]
    bwlimit: Option<u64>,
    /// On a host, work only while the load of the last minute is at most this, as in 1.5
    #[arg(long, global = true, value_name = "N", value_parser = target::parse_load)]
    max_load: Option<u32>,
    /// Keep values of the environment of a host's processes too, but for those that look like secrets
    #[arg(long, global = true)]
    with_env: bool,
    // Last, because its heading holds for what follows.
    #[command(flatten)]
    ssh: ssh::SshArguments,
}

impl Common {
    fn jobs(&self) -> usize {
        self.jobs.map_or_else(crate::jobs::default_jobs, usize::from)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what is in a machine, and how fit it is for a container
    Scan(scan::Arguments),
    /// Make a container image of a machine
    Convert(convert::Arguments),
    /// Compare machine and image file by file
    Verify(verify::Arguments),
    /// Compare any two machines, directories or images, both ways
    Diff(diff::Arguments),
    /// Apply a bundle of deltas that diff made
    Patch(patch::Arguments),
    /// List the files of a machine, an image or a bare filesystem
    Ls(ls::Arguments),
    /// Write one file's bytes to stdout
    Cat(cat::Arguments),
    /// Show what convert would do, as YAML to edit and to give back with `convert --plan`
    Plan(plan::Arguments),
    /// Write a build context: a Dockerfile that brings the machine's packages, and what no package brings
    Dockerfile(dockerfile::Arguments),
    /// Print the completions of a shell
    Completions(pages::CompletionArguments),
    /// Write the man pages into a directory
    Man(pages::ManArguments),
    /// The far side of a connection to a host
    #[command(hide = true, disable_help_flag = true)]
    Agent {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<std::ffi::OsString>,
    },
}

/// Runs the program with the process's arguments and says how it went.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Agent { words } = cli.command {
        return crate::agent::main(words.into_iter());
    }
    ui::clean_up_on_signals();
    let ui = ui::Ui::new(cli.common.quiet, cli.common.verbose);
    let result = match &cli.command {
        Command::Scan(arguments) => scan::run(&cli.common, arguments, &ui),
        Command::Convert(arguments) => convert::run(&cli.common, arguments, &ui),
        Command::Verify(arguments) => verify::run(&cli.common, arguments, &ui),
        Command::Diff(arguments) => diff::run(&cli.common, arguments, &ui),
        Command::Patch(arguments) => patch::run(&cli.common, arguments, &ui),
        Command::Ls(arguments) => ls::run(&cli.common, arguments, &ui),
        Command::Cat(arguments) => cat::run(&cli.common, arguments, &ui),
        Command::Plan(arguments) => plan::run(&cli.common, arguments, &ui),
        Command::Dockerfile(arguments) => dockerfile::run(&cli.common, arguments, &ui),
        Command::Completions(arguments) => pages::completions(arguments),
        Command::Man(arguments) => pages::man(arguments),
        Command::Agent { .. } => Ok(code::DONE),
    };
    ui.finish();
    crate::scratch::wait_if_ending();
    match result {
        Ok(code) => ExitCode::from(code),
        // A reader that has seen enough (`| head`) is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(code::DONE),
        Err(error) => {
            eprint!("{}", report(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| {
        e.downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_table_of_arguments_is_sound() {
        Cli::command().debug_assert();
    }
}
