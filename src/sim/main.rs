//! Runs seeds of the simulator and says what came of them; `scripts/simulate` builds and starts
//! it.

fn main() {
    etched::program::simulate(std::env::args().skip(1))
}
