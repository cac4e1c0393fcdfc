//! Random numbers and moments, which a seed brings again.

use std::time::Duration;

/// SplitMix64: moments that differ from run to run, and can be had again with `PGSLUICE_SEED`.
#[derive(Debug)]
pub struct Random(u64);

impl Default for Random {
    fn default() -> Random {
        Random::new()
    }
}

impl Random {
    /// Of the seed that is given, or of now.
    pub fn new() -> Random {
        let given = std::env::var("PGSLUICE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.unwrap_or_default().as_nanos() as u64
        });
        println!("PGSLUICE_SEED={seed}");
        Random(seed)
    }

    /// What this seed gives, every time.
    pub fn seeded(seed: u64) -> Random {
        Random(seed)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Lets a moment pass, of up to `limit`.
    pub async fn pause(&mut self, limit: Duration) {
        tokio::time::sleep(Duration::from_micros(self.below(limit.as_micros() as u64))).await;
    }
}
