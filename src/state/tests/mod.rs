//! What entries mean: scripts, a model that keeps the whole history, and restarts.

mod answers;
mod auth_language;
mod cache;
mod language;
mod member;
mod random;
mod restarts;
mod rocks;
mod scripts;
mod show;
mod sliced;
