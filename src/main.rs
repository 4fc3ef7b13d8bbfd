//! The server's program; see `program.rs`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    /// Of the allocator's library: has the calling thread give up pages that hold nothing, and gives
    /// back to the system what was given up a while ago.
    safe fn mi_collect(force: bool);
}

fn main() -> std::process::ExitCode {
    etched::program::run(|| mi_collect(false))
}
