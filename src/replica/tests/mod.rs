//! Several cores with logs and machines of their own, on one thread, over a network that loses,
//! delays and reorders, with members that die and come back: what is answered is applied exactly
//! once everywhere, and no read is stale. The production code decides; only threads and sockets
//! are missing.

mod abandoned;
mod world;

use world::World;

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = std::env::var("ETCHED_SEEDS").ok();
    let number = number.map_or(default, |number| number.parse().expect("a number of seeds"));
    0..number
}

#[test]
fn what_is_answered_is_applied_once_and_reads_are_not_stale() {
    let (mut acknowledged, mut read, mut moved) = (0, 0, 0);
    for seed in seeds(12) {
        println!("seed {seed}");
        let mut world = World::new(seed, 3 + 2 * (seed as usize % 2));
        for _ in 0..6_000 {
            world.step();
        }
        let outcome = world.settle();
        acknowledged += outcome.acknowledged;
        read += outcome.reads;
        moved += outcome.leaders;
        println!("  {outcome:?}");
    }
    // Otherwise nothing was tested.
    assert!(acknowledged > 300, "{acknowledged} writes were answered");
    assert!(read > 200, "{read} reads were answered");
    assert!(moved > 20, "there were {moved} leaders");
}
