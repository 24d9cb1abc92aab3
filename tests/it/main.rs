//! Integration tests: one binary, one module a subject. `tests/all.sh` installs what they need and runs them.

#[expect(dead_code, reason = "helpers for the modules that follow")]
mod support;
