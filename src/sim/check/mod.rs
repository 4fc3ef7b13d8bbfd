//! Judges what happened in a world.
