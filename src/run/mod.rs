//! Composition root: preflight -> key -> store -> fs -> mount -> stage in -> command -> stage out -> wipe.
