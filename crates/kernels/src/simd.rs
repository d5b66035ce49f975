//! Vectors of f32, so that a loop is written once for two widths.
//!
//! The methods are meant to be inlined into functions that enable the instructions; outside they are calls.
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;

/// Lanes of f32.
///
/// # Safety
/// Every method needs the processor to have the instructions of its type, and pointers to as many lanes as
/// it reads or writes; alignment is not needed.
pub(crate) trait Lanes: Copy {
    const LANES: usize;
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(value: f32) -> Self;
    /// `self * by + to`, rounded once.
    unsafe fn fma(self, by: Self, to: Self) -> Self;
    /// `self * by`.
    unsafe fn mul(self, by: Self) -> Self;
    /// As many bf16, in order.
    unsafe fn load_half(from: *const u16) -> Self;
    /// As many signed bytes, as numbers.
    unsafe fn load_bytes(from: *const i8) -> Self;
    /// Pairs of bf16 in u32 lanes: those in the low halves, those in the high ones.
    unsafe fn load_bf16(from: *const u32) -> [Self; 2];
}

impl Lanes for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, to: Self) -> Self {
        unsafe { _mm512_fmadd_ps(self, by, to) }
    }

    #[inline(always)]
    unsafe fn mul(self, by: Self) -> Self {
        unsafe { _mm512_mul_ps(self, by) }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self {
        unsafe {
            let half = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(half))
        }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u32) -> [Self; 2] {
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let high = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(high)]
        }
    }
}

impl Lanes for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, to: Self) -> Self {
        unsafe { _mm256_fmadd_ps(self, by, to) }
    }

    #[inline(always)]
    unsafe fn mul(self, by: Self) -> Self {
        unsafe { _mm256_mul_ps(self, by) }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self {
        unsafe {
            let half = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half))
        }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u32) -> [Self; 2] {
        unsafe {
            let pairs = _mm256_loadu_si256(from.cast());
            let high = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(high)]
        }
    }
}

/// Types of weights, as parameters of kernels.
pub(crate) const F32: u8 = 0;
pub(crate) const BF16: u8 = 1;
pub(crate) const INT8: u8 = 2;

/// Bytes of one.
pub(crate) const fn size(kept: u8) -> usize {
    match kept {
        F32 => 4,
        BF16 => 2,
        _ => 1,
    }
}

/// Weights of a type, as many as there are lanes.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn load<V: Lanes, const KEPT: u8>(from: *const u8) -> V {
    unsafe {
        match KEPT {
            F32 => V::load(from.cast()),
            BF16 => V::load_half(from.cast()),
            _ => V::load_bytes(from.cast()),
        }
    }
}
