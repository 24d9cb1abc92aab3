//! The agent alone: see [`vm2k::agent`].

fn main() -> std::process::ExitCode {
    vm2k::agent::main(std::env::args_os().skip(1))
}
