//! Scripts (`testdata/`) that show what happens to requests in a small cluster of routers. Whole
//! members under random faults are left to the simulator.

mod abandoned;
mod scripts;
