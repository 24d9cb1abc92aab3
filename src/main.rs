//! The program: see [`vm2k`].

fn main() -> std::process::ExitCode {
    vm2k::cli::run()
}
