//! How even it would be if every user were given to a worker by lot.
//!
//! It is simulated, because no formula gives it for users of very different weight. The random numbers are the same in each
//! run.

use serde::Serialize;

/// Times that lots are drawn.
const TRIALS: usize = 200;
/// Lots that are drawn in all, at most: for very many users it is tried fewer times, and differs less.
const LOTS: usize = 20_000_000;

/// The largest over the mean of what lots gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Chance {
    /// Half of the trials were below it.
    pub median: f64,
    /// 95 of 100 trials were below it.
    pub p95: f64,
}

impl Chance {
    /// Gives users of the given amounts to workers of the given weights.
    pub(crate) fn of(amounts: impl Iterator<Item = u64> + Clone, weights: &[u64]) -> Self {
        let users = amounts.clone().count();
        let repeated = |(worker, weight): (usize, &u64)| {
            std::iter::repeat_n(worker, usize::try_from(*weight).unwrap_or(1))
        };
        let lots: Vec<usize> = weights.iter().enumerate().flat_map(repeated).collect();
        let trials = (LOTS / users.max(1)).clamp(20, TRIALS);
        let mut random = SplitMix(0x5eed);
        let mut loads = vec![0_u64; weights.len()];
        let mut found: Vec<f64> = (0..trials)
            .map(|_| {
                loads.fill(0);
                for amount in amounts.clone() {
                    loads[lots[random.below(lots.len())]] += amount;
                }
                super::largest_for_its_weight(&loads, weights)
            })
            .collect();
        found.sort_by(f64::total_cmp);
        Self {
            median: found[trials / 2],
            p95: found[trials * 95 / 100],
        }
    }
}

/// Steele, Lea and Flood's SplitMix64: enough for lots.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        // The upper half of the product is spread evenly.
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_equal_users_are_nearly_even_and_few_are_not() {
        let many = Chance::of(std::iter::repeat_n(1, 100_000), &[1; 4]);
        assert!(many.median > 1.0 && many.p95 < 1.02, "{many:?}");
        let few = Chance::of(std::iter::repeat_n(1, 8), &[1; 4]);
        assert!(few.median >= 1.5 && few.p95 <= 4.0, "{few:?}");
    }

    #[test]
    fn one_who_is_heavy_makes_their_worker_the_largest() {
        let chance = Chance::of([1_000, 1, 1, 1].into_iter(), &[1; 2]);
        assert!(chance.median > 1.99, "{chance:?}");
    }

    #[test]
    fn a_worker_of_more_weight_may_have_more() {
        let weighted = Chance::of(std::iter::repeat_n(1, 100_000), &[3, 1]);
        assert!(weighted.median > 1.0 && weighted.p95 < 1.03, "{weighted:?}");
    }
}
