//! Label models by name.

use super::{
    BinaryMoments, DawidSkene, Errors, Glad, Kos, LabelModel, Mace, MajorityVote, Mmsr, Snorkel, Triplets,
    Wawa, ZeroBasedSkill,
};

/// A label model that can be asked for by name, with its own defaults.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Whether it is one of those that `all` stands for; the others are variants of them.
    pub main: bool,
    make: fn() -> Box<dyn LabelModel>,
}

impl Entry {
    /// The model.
    pub fn model(&self) -> Box<dyn LabelModel> {
        (self.make)()
    }
}

/// All label models that need nothing but votes.
///
/// ```
/// use pilotfish_supervision::{Votes, label_models::{find, CATALOGUE}};
/// let votes = Votes::from_dense(4, 3, 2, &[1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0])?;
/// let model = find("ds").expect("Dawid-Skene").model();
/// assert_eq!(model.fit(&votes)?.labels(), [1, 0, 1, 0]);
/// assert!(CATALOGUE.iter().filter(|entry| entry.main).count() >= 10);
/// # Ok::<(), pilotfish_supervision::SupervisionError>(())
/// ```
pub const CATALOGUE: &[Entry] = &[
    Entry {
        name: "majority",
        about: "the class with the most votes",
        main: true,
        make: || Box::new(MajorityVote::default()),
    },
    Entry {
        name: "wawa",
        about: "votes weighted by agreement with the majority",
        main: true,
        make: || Box::new(Wawa),
    },
    Entry {
        name: "zbs",
        about: "zero-based skill",
        main: true,
        make: || Box::new(ZeroBasedSkill::default()),
    },
    Entry {
        name: "ds",
        about: "Dawid-Skene, to convergence",
        main: true,
        make: || Box::new(DawidSkene::default()),
    },
    Entry {
        name: "ds-crowd-kit",
        about: "Dawid-Skene as Crowd-Kit stops it",
        main: false,
        make: || Box::new(DawidSkene::crowd_kit()),
    },
    Entry {
        name: "one-coin",
        about: "Dawid-Skene with one accuracy a voter",
        main: true,
        make: || Box::new(DawidSkene::one_coin()),
    },
    Entry {
        name: "one-coin-crowd-kit",
        about: "the same as Crowd-Kit stops it",
        main: false,
        make: || Box::new(DawidSkene { errors: Errors::OneCoin, ..DawidSkene::crowd_kit() }),
    },
    Entry {
        name: "fast-ds",
        about: "Dawid-Skene with hard assignments",
        main: true,
        make: || Box::new(DawidSkene::fast()),
    },
    Entry {
        name: "hybrid-ds",
        about: "soft, then hard assignments",
        main: true,
        make: || Box::new(DawidSkene::hybrid()),
    },
    Entry {
        name: "naive-bayes",
        about: "Dawid-Skene with abstention as a vote, lightly smoothed",
        main: true,
        make: || Box::new(DawidSkene::naive_bayes()),
    },
    Entry {
        name: "glad",
        about: "abilities of voters, difficulties of items",
        main: true,
        make: || Box::new(Glad::default()),
    },
    Entry {
        name: "glad-crowd-kit",
        about: "GLAD as Crowd-Kit stops it",
        main: false,
        make: || Box::new(Glad::crowd_kit()),
    },
    Entry {
        name: "mace",
        about: "voters who know or answer by habit",
        main: true,
        make: || Box::new(Mace::default()),
    },
    Entry {
        name: "kos",
        about: "message passing, two classes",
        main: true,
        make: || Box::new(Kos::default()),
    },
    Entry {
        name: "m-msr",
        about: "trimmed factor of the agreements",
        main: true,
        make: || Box::new(Mmsr::default()),
    },
    Entry {
        name: "snorkel",
        about: "Snorkel's label model, solved; equal class balance",
        main: true,
        make: || Box::new(Snorkel::default()),
    },
    Entry {
        name: "snorkel-sgd",
        about: "Snorkel's label model as published",
        main: true,
        make: || Box::new(Snorkel::published(0)),
    },
    Entry {
        name: "flyingsquid",
        about: "triplets, two classes, equal class balance",
        main: true,
        make: || Box::new(Triplets::default()),
    },
    Entry {
        name: "moments",
        about: "exact moments of two classes; needs every vote",
        main: true,
        make: || Box::new(BinaryMoments::default()),
    },
];

/// The model of a name.
pub fn find(name: &str) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.name == name)
}
