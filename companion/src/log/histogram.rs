//! Times in a fixed number of buckets, for quantiles of any number of requests.
//!
//! A bucket is at most 1/32 of its value wide, so a quantile is too large by 3.2% at most.

/// Buckets for each doubling.
const STEPS: u32 = 32;
/// Below this, each millisecond has a bucket of its own.
const LINEAR: u64 = STEPS as u64;
/// Enough for 2^32 ms.
const BUCKETS: usize = (STEPS as usize) * 28;

/// Counts of milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    sum: u64,
    largest: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS].into_boxed_slice(),
            count: 0,
            sum: 0,
            largest: 0,
        }
    }
}

impl Histogram {
    /// Adds one.
    pub(crate) fn add(&mut self, ms: u64) {
        self.buckets[bucket(ms)] += 1;
        self.count += 1;
        self.sum += ms;
        self.largest = self.largest.max(ms);
    }

    /// How many there are.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// The mean in seconds.
    pub(crate) fn mean(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        self.sum as f64 / self.count as f64 / 1_000.0
    }

    /// The largest in seconds, exact.
    pub(crate) fn largest(&self) -> f64 {
        self.largest as f64 / 1_000.0
    }

    /// The time in seconds that the given part of all does not exceed: the upper end of its bucket.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let wanted = (part * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_end(index).min(self.largest) as f64 / 1_000.0;
            }
        }
        0.0
    }
}

fn bucket(ms: u64) -> usize {
    if ms < LINEAR {
        return ms as usize;
    }
    // The doubling that it lies in, and which of the steps in that.
    let doubling = ms.ilog2() - STEPS.ilog2();
    let step = (ms >> doubling) - LINEAR;
    let index = (u64::from(doubling) + 1) * LINEAR + step;
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

fn upper_end(index: usize) -> u64 {
    let index = index as u64;
    if index < LINEAR {
        return index;
    }
    let (doubling, step) = (index / LINEAR - 1, index % LINEAR);
    ((LINEAR + step + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_lies_in_its_bucket_and_near_its_upper_end() {
        for ms in (0..100_000).chain([1 << 20, 1 << 31, (1 << 31) + 12_345]) {
            let end = upper_end(bucket(ms));
            assert!(end >= ms && end - ms <= ms / 32, "{ms} {end}");
            assert!(bucket(ms) == 0 || upper_end(bucket(ms) - 1) < ms, "{ms}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        (1..=1_000).for_each(|ms| histogram.add(ms));
        assert_eq!((histogram.mean(), histogram.largest()), (0.5005, 1.0));
        for part in [0.5, 0.95, 0.99] {
            let quantile = histogram.quantile(part);
            assert!(
                (part..=part * 1.032).contains(&quantile),
                "{part} {quantile}"
            );
        }
    }
}
