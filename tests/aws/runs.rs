//! `runseal run` from end to end.
