//! Dropping verifiers that say nearly always the same.

use serde::{Deserialize, Serialize};

/// Which verifiers are dropped, by the share of their votes that say "right".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropRule {
    /// None.
    None,
    /// Keeps shares strictly between 0.1 and 0.9: the reference code's `all`.
    #[default]
    All,
    /// Keeps shares above 0.5: drops verifiers that mostly say "wrong".
    Small,
    /// Keeps shares below 0.5: drops verifiers that mostly say "right".
    Large,
    /// `Large` when fewer than 20 % of responses are right, `Small` when more than 80 % are, else `All`.
    Adaptive,
    /// The paper's limits: keeps 0.2 to 0.8 when 20 % to 80 % of responses are right; drops shares above 0.8 when
    /// fewer are, and below 0.2 when more are.
    Paper,
}

impl DropRule {
    fn keeps(self, share: f64, balance: f64) -> bool {
        match self {
            Self::None => true,
            Self::All => share > 0.1 && share < 0.9,
            Self::Small => share > 0.5,
            Self::Large => share < 0.5,
            Self::Adaptive if balance < 0.2 => Self::Large.keeps(share, balance),
            Self::Adaptive if balance > 0.8 => Self::Small.keeps(share, balance),
            Self::Adaptive => Self::All.keeps(share, balance),
            Self::Paper if balance < 0.2 => share <= 0.8,
            Self::Paper if balance > 0.8 => share >= 0.2,
            Self::Paper => (0.2..=0.8).contains(&share),
        }
    }

    /// The verifiers kept. When fewer than three would be, the three most balanced ones (ties: smaller index) of
    /// those that vary at all are added back, because moments need three.
    ///
    /// ```
    /// use pilotfish_supervision::weaver::DropRule;
    /// let shares = [0.05, 0.95, 0.5, 0.12];
    /// assert_eq!(DropRule::Small.matching(&shares, 0.5), [1]);
    /// assert_eq!(DropRule::Small.keep(&shares, 0.5), [1, 2, 3]);
    /// ```
    pub fn keep(self, shares: &[f64], balance: f64) -> Vec<usize> {
        let mut kept = self.matching(shares, balance);
        if kept.len() < 3 {
            let mut rest: Vec<usize> = (0..shares.len())
                .filter(|v| !kept.contains(v) && shares[*v] > 0.0 && shares[*v] < 1.0)
                .collect();
            rest.sort_by(|&a, &b| (shares[a] - 0.5).abs().total_cmp(&(shares[b] - 0.5).abs()));
            kept.extend(rest.into_iter().take(3 - kept.len()));
            kept.sort_unstable();
        }
        kept
    }

    /// The verifiers that the rule itself keeps.
    pub fn matching(self, shares: &[f64], balance: f64) -> Vec<usize> {
        (0..shares.len()).filter(|&v| self.keeps(shares[v], balance)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// N = 100, sums 5, 95, 50, 12.
    #[test]
    fn rules_by_hand() {
        let shares = [0.05, 0.95, 0.5, 0.12];
        assert_eq!(DropRule::All.matching(&shares, 0.5), [2, 3]);
        assert_eq!(DropRule::Small.matching(&shares, 0.5), [1]);
        assert_eq!(DropRule::Large.matching(&shares, 0.5), [0, 3]);
        assert_eq!(DropRule::None.matching(&shares, 0.5), [0, 1, 2, 3]);
        assert_eq!(DropRule::Adaptive.matching(&shares, 0.1), [0, 3]);
        assert_eq!(DropRule::Adaptive.matching(&shares, 0.9), [1]);
        assert_eq!(DropRule::Adaptive.matching(&shares, 0.5), [2, 3]);
        assert_eq!(DropRule::Paper.matching(&shares, 0.5), [2]);
        assert_eq!(DropRule::Paper.matching(&shares, 0.1), [0, 2, 3]);
        assert_eq!(DropRule::Paper.matching(&shares, 0.9), [1, 2]);
    }

    #[test]
    fn three_are_left_where_three_vary() {
        assert_eq!(DropRule::All.keep(&[0.06, 0.95, 0.5, 0.12], 0.5), [0, 2, 3]);
        assert_eq!(DropRule::All.keep(&[0.0, 1.0, 0.5], 0.5), [2]);
    }
}
