//! What a machine can do at most: how fast it reads memory, and how fast it multiplies and adds.
//!
//! A product of `w` rows cannot take less than `bound(w) = max(bytes / bandwidth, operations / peak)`; every figure of
//! speed means something only beside it. Each limit is the best of several attempts, because whatever else the machine
//! does can only make one slower.

use std::sync::Barrier;
use std::time::Instant;

use crate::isa::{Isa, Level};

/// The limits of a machine with some threads, measured.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Roofline {
    /// Threads that worked at once.
    pub threads: usize,
    /// Bytes a second that are read from memory.
    pub bandwidth: f64,
    /// Operations a second of f32 fused multiply-adds; each counts as two.
    pub float: f64,
    /// Operations a second of products of bytes summed in 32 bits; each counts as two. AVX2 adds eight products of small
    /// bytes in 16 bits before it widens their sums. Where there is no such instruction, that of floats.
    pub byte: f64,
}

/// Streams that are read side by side, and floats of each before the next eight begin: a processor that reads ahead does so
/// for each page, and some read several pages faster than one.
const STREAMS: usize = 8;
const STREAM: usize = 576;
/// Floats that a thread reads: 128 MB, more than caches hold.
const READ: usize = 7281 * STREAMS * STREAM;
const ATTEMPTS: usize = 5;
const STEPS: usize = 1 << 20;

/// What a [`Roofline`] is measured with: a measurement of something else can be interleaved with samples of the limits, so that
/// a change of a shared machine's speed meets both.
pub struct Meter {
    isa: Isa,
    /// The fastest of them here.
    order: Order,
    buffers: Vec<Vec<f32>>,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meter of {} threads, {}", self.buffers.len(), self.isa.name())
    }
}

impl Meter {
    /// Takes 128 MB a thread (at least one) and finds in which order they are read fastest.
    pub fn new(threads: usize) -> Self {
        let buffers = (0..threads.max(1)).map(|_| vec![1.0; READ]).collect();
        let mut meter = Self { isa: Isa::best(), order: Order::Streams, buffers };
        let rates = Order::ALL.map(|order| {
            let once = |_| meter.bandwidth(order, 1);
            (order, (0..ATTEMPTS).map(once).fold(0.0, f64::max))
        });
        let fastest = rates.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        meter.order = fastest.map_or(Order::Streams, |(order, _)| order);
        meter
    }

    /// Bytes a second of reading everything so many times.
    fn bandwidth(&self, order: Order, times: usize) -> f64 {
        let threads = self.buffers.len();
        let bytes = (threads * READ * 4 * times) as f64;
        rate(threads, bytes, |thread| (0..times).map(|_| read(self.isa, &self.buffers[thread], order)).sum())
    }

    /// Reads half a gigabyte a thread, about what a step of a small model reads, for a shorter time may meet a moment in
    /// which nobody else reads; and computes for some milliseconds.
    pub fn sample(&self) -> Roofline {
        let (isa, threads) = (self.isa, self.buffers.len());
        let bandwidth = self.bandwidth(self.order, 4);
        let steps = (threads * STEPS) as f64;
        let float = rate(threads, steps * float_operations(isa), |_| float_peak(isa));
        let byte = match byte_operations(isa) {
            Some(operations) => rate(threads, steps * operations, |_| byte_peak(isa)),
            None => float,
        };
        Roofline { threads, bandwidth, float, byte }
    }
}

impl Roofline {
    /// Measures for about a second, on `threads` threads of its own (at least one).
    pub fn measure(threads: usize) -> Self {
        let meter = Meter::new(threads);
        (1..ATTEMPTS).map(|_| meter.sample()).fold(meter.sample(), Self::best)
    }

    /// The higher of two measurements of each limit: what a shared machine could do at its best.
    #[must_use]
    pub fn best(self, other: Self) -> Self {
        Self {
            threads: self.threads,
            bandwidth: self.bandwidth.max(other.bandwidth),
            float: self.float.max(other.float),
            byte: self.byte.max(other.byte),
        }
    }

    /// The least seconds that reading so many bytes and computing so many operations on floats can take, each
    /// hidden behind the other.
    pub fn bound(&self, bytes: f64, operations: f64) -> f64 {
        (bytes / self.bandwidth).max(operations / self.float)
    }

    /// As [`bound`](Self::bound), for operations on bytes.
    pub fn bound_of_bytes(&self, bytes: f64, operations: f64) -> f64 {
        (bytes / self.bandwidth).max(operations / self.byte)
    }
}

/// The rate of `amount` done by all threads together.
fn rate(threads: usize, amount: f64, work: impl Fn(usize) -> f32 + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let time = |thread: usize| {
        barrier.wait();
        let clock = Instant::now();
        std::hint::black_box(work(thread));
        clock.elapsed().as_secs_f64()
    };
    let slowest = std::thread::scope(|scope| {
        let time = &time;
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || time(thread))).collect();
        let own = time(0);
        others.into_iter().filter_map(|other| other.join().ok()).fold(own, f64::max)
    });
    amount / slowest.max(1e-9)
}

/// How numbers are read.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// One after the other; so many bytes ahead are asked for early.
    Line { ahead: usize },
    /// Several streams side by side, each of which asks for the one after the others.
    Streams,
}

impl Order {
    const ALL: [Self; 3] = [Self::Line { ahead: 0 }, Self::Line { ahead: 2048 }, Self::Streams];
}

/// Sums of numbers of which each is read once.
fn read(isa: Isa, numbers: &[f32], order: Order) -> f32 {
    match isa.0 {
        Level::Scalar => {
            let mut sums = [0.0f32; 64];
            for block in numbers.as_chunks::<64>().0 {
                for (sum, number) in sums.iter_mut().zip(block) {
                    *sum += number;
                }
            }
            sums.iter().sum()
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        level => unsafe {
            match level {
                Level::Avx512 => x86::read_512(numbers, order),
                _ => x86::read_256(numbers, order),
            }
        },
    }
}

/// Operations of a step of [`float_peak`].
fn float_operations(isa: Isa) -> f64 {
    match isa.0 {
        Level::Scalar => 2.0 * 64.0,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => 2.0 * 8.0 * 12.0,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => 2.0 * 16.0 * 12.0,
    }
}

fn float_peak(isa: Isa) -> f32 {
    match isa.0 {
        Level::Scalar => {
            let (mut sums, by) = ([0.0f32; 64], std::hint::black_box(0.5f32));
            for _ in 0..STEPS {
                sums.iter_mut().for_each(|sum| *sum = by.mul_add(by, *sum));
            }
            sums.iter().sum()
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        level => unsafe {
            match level {
                Level::Avx512 => x86::float_512(STEPS),
                _ => x86::float_256(STEPS),
            }
        },
    }
}

/// Operations of a step of [`byte_peak`], where there is such an instruction.
fn byte_operations(isa: Isa) -> Option<f64> {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Some(2.0 * 64.0 * 12.0),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Some(2.0 * 8.0 * 32.0 * 6.0),
        _ => None,
    }
}

fn byte_peak(isa: Isa) -> f32 {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected, and it includes VNNI.
        Level::Avx512 => unsafe { x86::byte_512(STEPS) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        Level::Avx2 => unsafe { x86::byte_256(STEPS) },
        _ => 0.0,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Order, STREAM, STREAMS};
    use crate::simd::Lanes;

    #[inline(always)]
    unsafe fn read<V: Lanes>(numbers: &[f32], order: Order) -> f32 {
        unsafe {
            match order {
                Order::Line { ahead } => line::<V>(numbers, ahead),
                Order::Streams => streams::<V>(numbers),
            }
        }
    }

    #[inline(always)]
    unsafe fn streams<V: Lanes>(numbers: &[f32]) -> f32 {
        unsafe {
            let (mut sums, one) = ([V::zero(); STREAMS], V::splat(1.0));
            for group in numbers.chunks_exact(STREAMS * STREAM) {
                for at in (0..STREAM).step_by(16) {
                    for (stream, sum) in sums.iter_mut().enumerate() {
                        let from = group.as_ptr().add(stream * STREAM + at);
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(STREAMS * STREAM).cast());
                        for part in (0..16).step_by(V::LANES) {
                            *sum = V::load(from.add(part)).fma(one, *sum);
                        }
                    }
                }
            }
            total(&sums)
        }
    }

    #[inline(always)]
    unsafe fn line<V: Lanes>(numbers: &[f32], ahead: usize) -> f32 {
        const AT_ONCE: usize = 8;
        unsafe {
            let (mut sums, one) = ([V::zero(); AT_ONCE], V::splat(1.0));
            for block in numbers.chunks_exact(AT_ONCE * V::LANES) {
                let from = block.as_ptr();
                if ahead > 0 {
                    for line in 0..AT_ONCE * V::LANES / 16 {
                        _mm_prefetch::<_MM_HINT_T0>(from.cast::<i8>().wrapping_add(ahead + 64 * line));
                    }
                }
                for (at, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(from.add(at * V::LANES)).fma(one, *sum);
                }
            }
            total(&sums)
        }
    }

    #[inline(always)]
    unsafe fn total<V: Lanes>(sums: &[V]) -> f32 {
        let mut all = [0.0f32; 16];
        let mut total = 0.0;
        for sum in sums {
            // SAFETY: no vector is wider.
            unsafe { sum.store(all.as_mut_ptr()) };
            total += all[..V::LANES].iter().sum::<f32>();
        }
        total
    }

    /// Twelve independent sums hide the four cycles of an addition on two units.
    #[inline(always)]
    unsafe fn float<V: Lanes>(steps: usize) -> f32 {
        unsafe {
            let (mut sums, by) = ([V::zero(); 12], V::splat(std::hint::black_box(0.5)));
            for _ in 0..steps {
                for sum in &mut sums {
                    *sum = by.fma(by, *sum);
                }
            }
            total(&sums)
        }
    }

    /// # Safety
    /// AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn read_512(numbers: &[f32], order: Order) -> f32 {
        unsafe { read::<__m512>(numbers, order) }
    }

    /// # Safety
    /// AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn read_256(numbers: &[f32], order: Order) -> f32 {
        unsafe { read::<__m256>(numbers, order) }
    }

    /// # Safety
    /// AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn float_512(steps: usize) -> f32 {
        unsafe { float::<__m512>(steps) }
    }

    /// # Safety
    /// AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn float_256(steps: usize) -> f32 {
        unsafe { float::<__m256>(steps) }
    }

    /// # Safety
    /// AVX-512 with VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    pub(super) unsafe fn byte_512(steps: usize) -> f32 {
        let by = _mm512_set1_epi32(std::hint::black_box(0x0101_0101));
        let mut sums = [_mm512_setzero_si512(); 12];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, by, by);
            }
        }
        sums.iter().map(|&sum| _mm512_reduce_add_epi32(sum) as f32).sum()
    }

    /// # Safety
    /// AVX2.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn byte_256(steps: usize) -> f32 {
        let (mut by, ones) = (_mm256_set1_epi8(std::hint::black_box(1)), _mm256_set1_epi16(1));
        let mut sums = [_mm256_setzero_si256(); 6];
        for _ in 0..steps {
            let mut small = [_mm256_setzero_si256(); 6];
            for _ in 0..8 {
                for small in &mut small {
                    // SAFETY: no instruction at all. What it might have changed has to be multiplied anew.
                    unsafe {
                        std::arch::asm!("/* {0} */", inout(ymm_reg) by, options(nomem, nostack, preserves_flags))
                    };
                    *small = _mm256_add_epi16(*small, _mm256_maddubs_epi16(by, by));
                }
            }
            for (sum, small) in sums.iter_mut().zip(small) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(small, ones));
            }
        }
        // Eight integers as they are.
        sums.iter().flat_map(|&sum| bytemuck::cast::<__m256i, [i32; 8]>(sum)).map(|sum| sum as f32).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_by_hand() {
        let roofline = Roofline { threads: 1, bandwidth: 10.0, float: 4.0, byte: 16.0 };
        assert_eq!(roofline.bound(20.0, 4.0), 2.0);
        assert_eq!(roofline.bound(20.0, 12.0), 3.0);
        assert_eq!(roofline.bound_of_bytes(20.0, 12.0), 2.0);
        let other = Roofline { threads: 1, bandwidth: 9.0, float: 5.0, byte: 15.0 };
        assert_eq!(roofline.best(other), Roofline { threads: 1, bandwidth: 10.0, float: 5.0, byte: 16.0 });
    }

    #[test]
    fn every_number_is_read_and_every_step_counts() {
        let numbers = vec![1.0; 4 * STREAMS * STREAM];
        for &isa in Isa::available() {
            for order in Order::ALL {
                assert_eq!(read(isa, &numbers, order), numbers.len() as f32, "{} {order:?}", isa.name());
            }
            // A quarter a step and lane, until a sum is too large for it: 2^24 quarters.
            let lanes = float_operations(isa) / 2.0;
            assert_eq!(f64::from(float_peak(isa)), lanes * STEPS as f64 / 4.0, "{}", isa.name());
            if let Some(operations) = byte_operations(isa) {
                assert_eq!(f64::from(byte_peak(isa)), operations / 2.0 * STEPS as f64, "{}", isa.name());
            }
        }
    }

    #[test]
    fn limits_are_numbers() {
        let roofline = Roofline::measure(1);
        for limit in [roofline.bandwidth, roofline.float, roofline.byte] {
            assert!(limit.is_finite() && limit > 0.0);
        }
    }
}
