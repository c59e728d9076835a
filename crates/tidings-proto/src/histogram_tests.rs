use proptest::prelude::*;

use super::*;

fn of(nanos: &[u64]) -> Snapshot {
    let histogram = Histogram::default();
    nanos.iter().for_each(|nanos| histogram.record(Duration::from_nanos(*nanos)));
    histogram.snapshot()
}

/// What a bucket's bound may exceed its values by.
const WIDTH: f64 = 1.0905077326652577;

proptest! {
    #[test]
    fn a_quantile_is_never_below_the_true_one_and_at_most_a_bucket_above(
        mut nanos in prop::collection::vec((10_u32..37).prop_flat_map(|bits| 1_u64 << (bits - 1)..1 << bits), 1..200),
        q in 0.0_f64..=1.0,
    ) {
        let snapshot = of(&nanos);
        nanos.sort_unstable();
        let rank = ((q * nanos.len() as f64).ceil() as usize).max(1);
        let (exact, said) = (nanos[rank - 1] as f64, snapshot.quantile(q).unwrap().as_nanos() as f64);
        // Bounds are rounded down to whole nanoseconds, and so are the values.
        prop_assert!(said + 1.0 > exact && said <= (exact * WIDTH).max(954.0), "{exact} ns, said {said} ns");
    }

    #[test]
    fn whatever_the_buckets_nothing_is_lost_and_everything_is_within_its_bounds(
        nanos in prop::collection::vec(any::<u64>().prop_flat_map(|most| 0..=most >> (most % 64)), 0..100),
        least in -25_i32..10,
        coarser in 0_u32..5,
    ) {
        let snapshot = of(&nanos);
        let mut below = 0;
        let mut last = 0.0;
        for (bound, count) in snapshot.buckets(least, coarser) {
            prop_assert!(bound > last);
            last = bound;
            below += count;
            let expected = nanos.iter().filter(|nanos| **nanos as f64 <= bound * 1e9).count();
            prop_assert_eq!(below, expected as u64, "up to {} s", bound);
        }
        prop_assert_eq!((last, below, snapshot.count()), (f64::INFINITY, nanos.len() as u64, nanos.len() as u64));
    }
}

#[test]
fn no_count_is_lost_among_threads() {
    const THREADS: u64 = 8;
    const COUNTS: u64 = 10_000;
    let histogram = Histogram::default();
    std::thread::scope(|scope| {
        for thread in 1..=THREADS {
            let histogram = &histogram;
            scope.spawn(move || {
                (0..COUNTS).for_each(|_| histogram.record(Duration::from_micros(thread * 100)))
            });
        }
    });
    let snapshot = histogram.snapshot();
    assert_eq!(snapshot.count(), THREADS * COUNTS);
    assert_eq!(snapshot.sum(), Duration::from_micros(COUNTS * 100 * (1..=THREADS).sum::<u64>()));
}

#[test]
fn what_is_out_of_range_is_counted_at_its_end() {
    let snapshot = of(&[0, 1, u64::MAX / 2]);
    assert_eq!(snapshot.counts[0], 2);
    assert_eq!(snapshot.counts[BOUNDED], 1);
    assert_eq!(snapshot.quantile(0.5).map(|it| it.as_nanos()), Some(953));
    assert_eq!(snapshot.quantile(1.0), Some(Duration::from_secs(128)));
    assert_eq!(of(&[]).quantile(0.5), None);
    assert_eq!(of(&[]).count(), 0);
}

#[test]
fn a_bound_belongs_to_its_bucket() {
    for (nanos, bound) in [(1_000_000_000, 1.0), (1_000_000_001, 2_f64.powf(0.125)), (500_000_000, 0.5)] {
        let snapshot = of(&[nanos]);
        let (found, _) = snapshot.buckets(-20, 0).find(|(_, count)| *count == 1).unwrap();
        assert_eq!(found, bound, "{nanos} ns");
    }
}

#[test]
fn there_are_always_the_same_buckets_thirteen_to_a_factor_of_ten() {
    let bounds = |snapshot: &Snapshot| snapshot.buckets(-17, 1).map(|(bound, _)| bound).collect::<Vec<_>>();
    assert_eq!(bounds(&of(&[])), bounds(&of(&[1, 1_000_000, u64::MAX])));
    for decade in -5..2 {
        let (from, to) = (10_f64.powi(decade), 10_f64.powi(decade + 1));
        let within = bounds(&of(&[])).into_iter().filter(|bound| (from..to).contains(bound)).count();
        assert!(within >= 13, "{within} from {from} s to {to} s");
    }
}
