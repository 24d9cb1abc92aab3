//! The program: see [`vm2k`].

fn main() {}
