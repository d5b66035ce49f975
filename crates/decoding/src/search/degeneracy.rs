//! Why the likeliest text of a nearly perfect model is bad.
//!
//! A model `p = (1 - e) q + e r` is the wanted law `q` but for a share `e` of noise `r`. If `q` is uniform over `2^H`
//! texts and `r` over `M` texts outside them, the mode of `p` is noise if and only if `(1 - e) 2^-H < e / M`, that is
//! `H > log2((1 - e) M / e)`: however good the model, once texts are long enough. Given an attribute that texts of
//! `q` have and noise has not, the mode of `p` is that of `q` again; length is such an attribute for the empty text.
//!
//! Reconstructed from the abstract and reviews of Yoshida et al. 2024, arXiv 2311.08817.
//!
//! ```
//! use pilotfish_decoding::search::degeneracy::{mode_is_noise, threshold_bits};
//! // One percent of empty texts, three bits a symbol: two symbols are safe, three are not.
//! assert!((threshold_bits(0.01, 1.0) - 6.629).abs() < 1e-3);
//! assert!(!mode_is_noise(6.0, 0.01, 1.0) && mode_is_noise(9.0, 0.01, 1.0));
//! // 2^100 equal texts against an error of one in a thousand million.
//! assert!(mode_is_noise(100.0, 1e-9, 1.0));
//! ```

/// The entropy in bits beyond which the mode is noise: `log2((1 - e) M / e)`. NaN for `e` outside `[0, 1]` or `M`
/// not above 0.
pub fn threshold_bits(noise: f64, noisy_texts: f64) -> f64 {
    if !((0.0..=1.0).contains(&noise) && noisy_texts > 0.0) {
        return f64::NAN;
    }
    ((1.0 - noise) / noise * noisy_texts).log2()
}

/// Whether the mode of a model whose wanted texts have `bits` of entropy is noise. False for numbers out of range.
pub fn mode_is_noise(bits: f64, noise: f64, noisy_texts: f64) -> bool {
    bits > threshold_bits(noise, noisy_texts)
}
