use pilotfish_decoding::{Choose, Drawn, MultiStep, Recursive, SampleAndMatch, SpeculativeChain, Verifier};
use pilotfish_model::sampling::Sampler;

/// Makes a verifier from a sampler and a source of decisions.
pub type Make = Box<dyn Fn(Sampler, Box<dyn Choose>) -> Box<dyn Verifier> + Send + Sync>;

/// A verifier to be certified, with the drafts that it claims to be exact for.
pub struct Subject {
    /// Name on the certificate.
    pub name: String,
    /// How its drafts are drawn.
    pub drawn: Drawn,
    /// Children a node at most; `usize::MAX` for any number.
    pub children: usize,
    /// Makes it.
    pub make: Make,
}

impl Subject {
    /// A verifier for any number of children.
    pub fn new<V: Verifier + 'static>(
        name: &str,
        drawn: Drawn,
        make: impl Fn(Sampler, Box<dyn Choose>) -> V + Send + Sync + 'static,
    ) -> Self {
        let make: Make = Box::new(move |sampler, choose| Box::new(make(sampler, choose)));
        Self { name: name.into(), drawn, children: usize::MAX, make }
    }

    /// The same for chains only.
    pub fn chains(self) -> Self {
        Self { children: 1, ..self }
    }
}

/// The lossless verifiers of `pilotfish-decoding`, each with every kind of draft that it takes.
pub fn own() -> Vec<Subject> {
    use Drawn::{Fixed, WithReplacement, WithoutReplacement};
    let matching = |drawn, name: &str| Subject::new(name, drawn, SampleAndMatch::with_choose);
    vec![
        Subject::new("speculative sampling", WithReplacement, SpeculativeChain::with_choose).chains(),
        Subject::new("multi-step sampling", WithReplacement, MultiStep::with_choose),
        Subject::new("recursive rejection", WithoutReplacement, Recursive::with_choose),
        matching(Fixed, "sample-and-match, fixed drafts"),
        matching(WithReplacement, "sample-and-match, independent drafts"),
        matching(WithoutReplacement, "sample-and-match, drafts without replacement"),
    ]
}
