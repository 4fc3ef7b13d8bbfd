//! What becomes of requests in a small cluster of routers, shown by scripts (`testdata/`). Whole
//! members under random faults are the simulator's.

mod abandoned;
mod scripts;
