//! Docker itself, with containers that have no rights at all.
