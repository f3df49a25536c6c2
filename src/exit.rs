//! Errors to exit codes: `sysexits.h` numbers, one exhaustive match.
