//! Reads and writes beyond a slice end the process: slices here end where a page begins that nobody may touch. Memory
//! checkers do not know AVX-512; this does.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use pilotfish_kernels::{
    Activations, Active, Bits, Blocks, Columns, Dense, Float, Isa, Kept, Offset, Pattern, Product, Serial,
    Sparse,
};

const PAGE: usize = 1 << 16; // no system has larger ones by default

/// Memory whose last byte is the last that may be touched.
struct Guarded {
    start: *mut u8,
    pages: usize,
    len: usize,
}

impl Guarded {
    fn new(bytes: &[u8]) -> Self {
        let pages = bytes.len().div_ceil(PAGE) + 1;
        // SAFETY: new private memory of whole pages; the last one is closed.
        let start = unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                pages * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            );
            assert!(start != libc::MAP_FAILED);
            assert_eq!(libc::mprotect(start.byte_add((pages - 1) * PAGE), PAGE, libc::PROT_NONE), 0);
            start.cast::<u8>()
        };
        let mut own = Self { start, pages, len: bytes.len() };
        own.get().copy_from_slice(bytes);
        own
    }

    fn get<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        // SAFETY: `len` bytes before the closed page are this one's own.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(self.start.add((self.pages - 1) * PAGE - self.len), self.len)
        };
        bytemuck::cast_slice_mut(bytes)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing borrows it any more.
        unsafe { libc::munmap(self.start.cast(), self.pages * PAGE) };
    }
}

fn multiply(product: &dyn Product) {
    let [outs, ins] = product.shape();
    for &isa in Isa::available() {
        for rows in [1, 2, 3, 7, 8, 13, 16] {
            let mut x = Guarded::new(bytemuck::cast_slice(&vec![0.5f32; rows * ins]));
            let mut y = Guarded::new(bytemuck::cast_slice(&vec![f32::NAN; rows * outs]));
            product.apply_on(isa, x.get(), rows, y.get(), &Serial).unwrap();
            assert!(y.get::<f32>().iter().all(|y| y.is_finite()));
        }
    }
}

#[test]
fn nothing_is_touched_beyond_the_end() {
    for (outs, ins) in [(1, 32), (16, 32), (33, 96), (70, 160), (129, 64)] {
        let weights: Vec<f32> = (0..outs * ins).map(|i| (i % 7) as f32 - 3.0).collect();
        for float in [Float::F32, Float::Bf16] {
            let packed = Dense::pack(&weights, outs, ins, float).unwrap();
            let mut bytes = Guarded::new(packed.packed());
            multiply(&Dense::from_packed(bytes.get(), outs, ins, float).unwrap());
        }
        let blocks = ins / 32;
        for bits in [Bits::Four, Bits::Eight] {
            let (codes, scales, zeros) =
                (vec![7; outs * ins], vec![0.5; outs * blocks], vec![3; outs * blocks]);
            let packed = Blocks::pack(&codes, &scales, &zeros, outs, ins, bits).unwrap();
            assert_eq!(packed.form().offset, Offset::Zero);
            let mut bytes = Guarded::new(packed.packed());
            for activations in [Activations::Sixteen, Activations::Eight] {
                let packed = Blocks::from_packed(bytes.get(), outs, ins, packed.form()).unwrap();
                multiply(&packed.with_activations(activations));
            }
        }
        for (keep, group) in
            [(2, 4), (1, 4), (3, 4), (1, 2), (2, 8), (3, 8), (1, 8), (1, 16), (4, 32), (32, 32)]
        {
            let pattern = Pattern { keep, group };
            let mut pruned = weights.clone();
            pruned.chunks_mut(group).for_each(|group| group[keep..].fill(0.0));
            for kept in [Kept::F32, Kept::Bf16, Kept::Int8] {
                let packed = Sparse::pack(&pruned, outs, ins, pattern, kept).unwrap();
                let mut bytes = Guarded::new(packed.packed());
                multiply(&Sparse::from_packed(bytes.get(), outs, ins, pattern, kept).unwrap());
            }
        }
        for kept in [Kept::F32, Kept::Bf16, Kept::Int8] {
            let packed = Columns::pack(&weights, outs, ins, kept).unwrap();
            let mut bytes = Guarded::new(packed.packed());
            let columns = Columns::from_packed(bytes.get(), outs, ins, kept).unwrap();
            for &isa in Isa::available() {
                for rows in [1, 2, 3, 7, 8, 13] {
                    let active = Active::above(&vec![0.5; rows * ins], rows, ins, 0.0).unwrap();
                    let mut y = Guarded::new(bytemuck::cast_slice(&vec![f32::NAN; rows * outs]));
                    columns.apply_on(isa, &active, y.get(), &Serial).unwrap();
                    assert!(y.get::<f32>().iter().all(|y| y.is_finite()));
                }
            }
        }
    }
}

/// What a spoilt file may hold: every bit set, so that places point as far as they can.
#[test]
fn packed_bytes_of_any_content_are_safe() {
    for (keep, group) in [(2, 4), (1, 3), (5, 12), (3, 20), (7, 32)] {
        let (outs, ins, pattern) = (33, 3 * group, Pattern { keep, group });
        for kept in [Kept::F32, Kept::Bf16, Kept::Int8] {
            let size = Sparse::packed_bytes(outs, ins, pattern, kept);
            let mut bytes = Guarded::new(&vec![0xff; size]);
            let spoilt = Sparse::from_packed(bytes.get(), outs, ins, pattern, kept).unwrap();
            assert_eq!(spoilt.unpack().len(), outs * ins);
            for &isa in Isa::available() {
                let mut x = Guarded::new(bytemuck::cast_slice(&vec![0.5f32; 3 * ins]));
                let mut y = Guarded::new(bytemuck::cast_slice(&vec![0.0f32; 3 * outs]));
                spoilt.apply_on(isa, x.get(), 3, y.get(), &Serial).unwrap();
            }
        }
    }
}
