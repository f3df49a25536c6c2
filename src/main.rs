//! The `runseal` binary: parse, run, map the outcome to an exit code.

/// Of the binary alone: tests of the library count allocations with one of their own.
#[global_allocator]
static ALLOCATOR: runseal::sys::memory::Allocator = runseal::sys::memory::Allocator;

fn main() -> std::process::ExitCode {
    runseal::cli::main()
}
