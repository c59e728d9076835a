//! Inputs that are nearly right: samples with something wrong, the same for the same seed.

/// Longest input that is made, in bytes.
const INPUT_BYTES_MAX: usize = 8 << 10;

/// Numbers that lie at an edge of something: of a byte, of a variable-length number, of a length field.
const EDGES: [u64; 14] =
    [0, 1, 0x7f, 0x80, 0xfa, 0xfb, 0xfc, 0xfd, 0xff, 0x3fff, 0xffff, 0x0010_0000, 0xffff_ffff, u64::MAX];

/// Makes inputs from samples.
#[derive(Clone, Debug)]
pub struct Mutator {
    samples: Vec<Vec<u8>>,
    state: u64,
}

impl Mutator {
    /// What follows from a seed is always the same.
    #[must_use]
    pub fn new(samples: Vec<Vec<u8>>, seed: u64) -> Self {
        Self { samples, state: seed }
    }

    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.draw() % bound as u64) as usize }
    }

    fn sample(&mut self) -> Vec<u8> {
        let index = self.below(self.samples.len());
        self.samples[index].clone()
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(64) + 1)
    }

    /// The next input: a sample with one to four changes.
    pub fn input(&mut self) -> Vec<u8> {
        let mut input = self.sample();
        for _ in 0..=self.below(4) {
            self.change(&mut input);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len());
        match self.below(8) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = self.draw() as u8,
            2 => {
                // A number at an edge, as wide as some field.
                let edge = EDGES[self.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][self.below(4)];
                for (old, new) in input.iter_mut().skip(at).zip(&edge[..width]) {
                    *old = *new;
                }
            }
            3 => input.truncate(at),
            4 => drop(input.drain(self.range(input.len()))),
            5 => {
                let again = input[self.range(input.len())].to_vec();
                drop(input.splice(at..at, again));
            }
            6 => {
                let other = self.sample();
                let part = other[self.range(other.len())].to_vec();
                drop(input.splice(at..at, part));
            }
            _ => {
                let other = self.sample();
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
}
