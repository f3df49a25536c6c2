//! IAM and key policies: what a run needs, and what is wrong with one.
