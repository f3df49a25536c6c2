//! Staging: every fault ends with complete data or an error that says why.
