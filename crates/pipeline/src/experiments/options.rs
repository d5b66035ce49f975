use std::collections::BTreeMap;
use std::str::FromStr;

/// An option that an experiment declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its name, without the dashes.
    pub name: &'static str,
    /// The value when it is not given. An option whose default is `false` may be given without a value.
    pub default: &'static str,
    /// One line about it.
    pub about: &'static str,
}

/// What is wrong with an option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// An option that was not declared.
    #[error(
        "no option {option:?}{}; there are: {}",
        near.map(|near| format!(" (did you mean --{near}?)")).unwrap_or_default(),
        known.iter().map(|name| format!("--{name}")).collect::<Vec<_>>().join(", ")
    )]
    Unknown {
        /// The word given.
        option: String,
        /// The nearest option.
        near: Option<&'static str>,
        /// All options.
        known: Vec<&'static str>,
    },
    /// A word that is neither an option nor the value of one.
    #[error("{word:?} is not an option; write --name value or --name=value")]
    NotAnOption {
        /// The word given.
        word: String,
    },
    /// An option without its value.
    #[error("--{option} needs a value")]
    NoValue {
        /// The option.
        option: &'static str,
    },
    /// An option given more than once.
    #[error("--{option} is given twice")]
    Twice {
        /// The option.
        option: &'static str,
    },
    /// A value that cannot be read.
    #[error("--{option} {value:?}: {why} (wanted: {want})")]
    BadValue {
        /// The option.
        option: String,
        /// The value given.
        value: String,
        /// What is wrong with it.
        why: String,
        /// The type wanted.
        want: &'static str,
    },
}

/// Values of declared options.
///
/// ```
/// use pilotfish_pipeline::experiments::{Choice, Options};
/// let declared = [Choice { name: "widths", default: "1,2,4", about: "rows a step" }];
/// let options = Options::parse(&[&declared], ["--widths=1,8"])?;
/// assert_eq!(options.list::<usize>("widths")?, [1, 8]);
/// assert!(Options::parse(&[&declared], ["--width=1"]).is_err());
/// # Ok::<(), pilotfish_pipeline::experiments::OptionError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    values: BTreeMap<&'static str, String>,
}

/// A run's configuration: options that say what is computed. Where results go and whether steps are run again
/// ([`COMMON`](super::COMMON)) make no other run of it.
impl serde::Serialize for Options {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let common = |name: &str| super::COMMON.iter().any(|choice| choice.name == name);
        serializer.collect_map(self.values.iter().filter(|(name, _)| !common(name)))
    }
}

impl Options {
    /// Reads `--name value` and `--name=value`, and fills in defaults.
    ///
    /// # Errors
    /// An option that was not declared, one without its value, one given twice, or a stray word.
    pub fn parse<'a>(
        declared: &[&[Choice]],
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, OptionError> {
        let choices = || declared.iter().flat_map(|choices| choices.iter());
        let mut values = BTreeMap::new();
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next() {
            let Some(option) = word.strip_prefix("--").filter(|option| !option.is_empty()) else {
                return Err(OptionError::NotAnOption { word: word.into() });
            };
            let (name, given) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            let Some(choice) = choices().find(|choice| choice.name == name) else {
                let known: Vec<_> = choices().map(|choice| choice.name).collect();
                let near = crate::near(name, known.iter().copied());
                return Err(OptionError::Unknown { option: word.into(), near, known });
            };
            let next = words.peek().copied().filter(|next| !next.starts_with("--"));
            let value = match (given, next) {
                (Some(value), _) => value,
                (None, Some(value)) if choice.default != "false" || matches!(value, "true" | "false") => {
                    words.next();
                    value
                }
                (None, _) if choice.default == "false" => "true",
                (None, _) => return Err(OptionError::NoValue { option: choice.name }),
            };
            if values.insert(choice.name, value.to_owned()).is_some() {
                return Err(OptionError::Twice { option: choice.name });
            }
        }
        for choice in choices() {
            values.entry(choice.name).or_insert_with(|| choice.default.to_owned());
        }
        Ok(Self { values })
    }

    /// The text of an option.
    ///
    /// # Errors
    /// It was not declared.
    pub fn text(&self, name: &str) -> Result<&str, OptionError> {
        self.values.get(name).map(String::as_str).ok_or_else(|| OptionError::Unknown {
            option: name.into(),
            near: None,
            known: self.values.keys().copied().collect(),
        })
    }

    /// The value of an option.
    ///
    /// # Errors
    /// It cannot be read as a `T`, or was not declared.
    pub fn get<T: FromStr>(&self, name: &str) -> Result<T, OptionError>
    where
        T::Err: std::fmt::Display,
    {
        read(name, self.text(name)?)
    }

    /// The values of an option that holds a list with commas; an empty text is an empty list.
    ///
    /// # Errors
    /// A part cannot be read as a `T`, or the option was not declared.
    pub fn list<T: FromStr>(&self, name: &str) -> Result<Vec<T>, OptionError>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.text(name)?;
        let parts = text.split(',').map(str::trim).filter(|_| !text.trim().is_empty());
        parts.map(|part| read(name, part)).collect()
    }

    /// All options with their values, defaults included.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.values.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

fn read<T: FromStr>(name: &str, value: &str) -> Result<T, OptionError>
where
    T::Err: std::fmt::Display,
{
    value.parse().map_err(|error: T::Err| OptionError::BadValue {
        option: name.into(),
        value: value.into(),
        why: error.to_string(),
        want: std::any::type_name::<T>().rsplit("::").next().unwrap_or("a value"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECLARED: &[Choice] = &[
        Choice { name: "prompts", default: "24", about: "" },
        Choice { name: "fresh", default: "false", about: "" },
        Choice { name: "bias", default: "0.5", about: "" },
    ];

    fn parse(words: &[&str]) -> Result<Options, OptionError> {
        Options::parse(&[DECLARED], words.iter().copied())
    }

    #[test]
    fn both_spellings_and_defaults() {
        for words in [&["--prompts", "3", "--bias=-1.5"] as &[&str], &["--bias", "-1.5", "--prompts=3"]] {
            let options = parse(words).unwrap();
            assert_eq!(options.get::<usize>("prompts"), Ok(3));
            assert_eq!(options.get::<f64>("bias"), Ok(-1.5));
            assert_eq!(options.get::<bool>("fresh"), Ok(false));
        }
        assert_eq!(parse(&["--prompts="]).unwrap().text("prompts"), Ok(""));
    }

    #[test]
    fn a_flag_needs_no_value_and_takes_none_by_accident() {
        assert_eq!(parse(&["--fresh"]).unwrap().get("fresh"), Ok(true));
        assert_eq!(parse(&["--fresh", "false"]).unwrap().get("fresh"), Ok(false));
        assert_eq!(parse(&["--fresh", "--prompts", "1"]).unwrap().get("fresh"), Ok(true));
        assert_eq!(parse(&["--fresh", "3"]), Err(OptionError::NotAnOption { word: "3".into() }));
    }

    #[test]
    fn where_and_how_often_make_no_other_configuration() {
        let json = |words: &[&str]| serde_json::to_string(&parse(words).unwrap()).unwrap();
        assert_eq!(json(&["--fresh"]), json(&[]));
        assert_eq!(json(&["--prompts=3"]), r#"{"bias":"0.5","prompts":"3"}"#);
    }

    #[test]
    fn wrong_words_are_errors() {
        assert_eq!(parse(&["prompts"]), Err(OptionError::NotAnOption { word: "prompts".into() }));
        assert_eq!(parse(&["--"]), Err(OptionError::NotAnOption { word: "--".into() }));
        assert_eq!(parse(&["--prompts"]), Err(OptionError::NoValue { option: "prompts" }));
        assert_eq!(parse(&["--prompts", "--fresh"]), Err(OptionError::NoValue { option: "prompts" }));
        assert_eq!(parse(&["--fresh", "--fresh"]), Err(OptionError::Twice { option: "fresh" }));
        assert!(matches!(parse(&["--=3"]), Err(OptionError::Unknown { .. })));
        assert!(parse(&["--prompts", "-3"]).unwrap().get::<usize>("prompts").is_err());
    }

    #[test]
    fn lists() {
        let declared = [Choice { name: "w", default: "", about: "" }];
        let list = |text| Options::parse(&[&declared], [text]).unwrap().list::<usize>("w");
        assert_eq!(list("--w="), Ok(vec![]));
        assert_eq!(list("--w=1, 2"), Ok(vec![1, 2]));
        assert!(list("--w=1,,2").is_err() && list("--w=1,x").is_err());
    }
}
