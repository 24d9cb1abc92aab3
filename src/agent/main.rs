//! The agent alone: see [`vm2k::agent`].

fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
