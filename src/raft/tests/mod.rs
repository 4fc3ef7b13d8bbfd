//! Raft as scripts show it (`testdata/`), and what scripts of the layers above share with them: a
//! member's log on a disk in memory, the links between members, and how messages are written.

pub mod disk;
pub mod links;
mod scripts;
pub mod show;
