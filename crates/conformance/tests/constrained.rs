//! Speculative decoding under constraints leaves the locally constrained law, and mistakes are caught.
#![allow(clippy::unwrap_used)]

use pilotfish_conformance::{Kind, Thoroughness, certify_constrained};

#[test]
fn constrained_verifiers_are_exact() {
    let thoroughness = Thoroughness { texts: 20, tokens: 40, ..Thoroughness::default() };
    let certificate = certify_constrained(&thoroughness).unwrap();
    let failures: Vec<_> = certificate.failures().collect();
    assert!(certificate.passed, "{failures:#?}");
    let laws = certificate.checks.iter().filter(|check| check.kind == Kind::Law).count();
    let wrong = certificate.checks.iter().filter(|check| check.kind == Kind::KnownWrong).count();
    assert_eq!((laws, wrong), (6, 4));
    assert!(certificate.is_intact());
}
