//! A kit that certifies speculative decoders, ours or yours. A verifier decides over an abstract
//! [`Choose`](pilotfish_decoding::Choose); the kit explores every branch of its decisions and of the draft's draws
//! with exact weights, so that "the output's law is the target's" is a computation, not a sample. What cannot be
//! enumerated is counted, with a fixed probability of a false alarm. And since a test that cannot fail proves
//! nothing, every certificate shows that known-wrong variants fail the same checks.
//!
//! | to do | use |
//! |---|---|
//! | certify verifiers | [`certify`] of [`Subject`]s; [`own`] lists those of `pilotfish-decoding` |
//! | certify speculative decoding under a constraint | [`certify_constrained`] |
//! | enumerate a law | [`Case::round_law`], [`Case::loop_law`], or [`Explorer`] for anything else |
//! | check a model's masks and cache | [`check_model`] |
//! | check a drafter: greedy identity | [`greedy_differences`], with [`adversaries`] |
//! | check a ledger | [`violations`] |
//!
//! ```
//! use pilotfish_conformance::{Case, Wrong, distance, one_node, own, EXAMPLE_B};
//! // Two children drawn without replacement, target (.4, .3, .2, .1), draft (.1, .2, .3, .4).
//! let case = one_node(&EXAMPLE_B.0, &EXAMPLE_B.1, 2)?;
//! let truth = case.truth(&[0], 1)?;
//! let recursive = own().into_iter().find(|subject| subject.name == "recursive rejection").expect("it is there");
//! assert!(distance(&case.round_law(&recursive, &[0], 1, None)?, &truth) < 1e-12);
//! // The most common mistake: the draft's law is not renormalised after a rejection.
//! let wrong = Wrong::QNeverRenormalised.subject();
//! let law = case.round_law(&wrong, &[0], 1, None)?;
//! assert!((law[&vec![0]] - 0.35663).abs() < 1e-5);
//! # Ok::<(), pilotfish_decoding::DecodingError>(())
//! ```
#![forbid(unsafe_code)]

mod certificate;
mod constrained;
mod draws;
mod exact;
mod explore;
mod loops;
mod models;
/// Tests of counts against laws.
pub mod statistics;
mod subjects;
mod wrong;

pub use certificate::{
    Certificate, Check, EXAMPLE_A, EXAMPLE_B, Kind, Thoroughness, at_temperature, certify, one_node,
};
pub use constrained::certify_constrained;
pub use draws::{TableDrafter, draw, law_after};
pub use exact::{Case, Tamper, constant};
pub use explore::{Explorer, Law, distance};
pub use loops::{Excess, RandomTrees, adversaries, greedy_differences, violations};
pub use models::{ModelChecks, check_model};
pub use subjects::{Make, Subject, own};
pub use wrong::Wrong;
