//! Preflight: every denial to its finding and remedy.
