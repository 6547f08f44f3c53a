//! Dollars as whole picodollars: a price per million tokens with six decimals is a whole number of them per token.
//!
//! **Invariant:** sums and products are exact; what does not fit stays at the greatest value.

use std::{fmt, iter::Sum};

use serde_json::Value as Json;

/// Picodollars of a dollar.
const PER_DOLLAR: u64 = 1_000_000_000_000;
/// Decimals of a dollar that are kept.
const DECIMALS: usize = 12;
/// Decimals of a price per million tokens that are kept; the other six go into the million.
const RATE_DECIMALS: usize = 6;

/// An amount of dollars, up to 18 millions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u64);

/// What one token costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate(u64);

impl Cost {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many picodollars.
    pub const fn from_picos(picos: u64) -> Self {
        Self(picos)
    }

    /// The picodollars.
    pub const fn picos(self) -> u64 {
        self.0
    }

    /// The amount that `dollars` is written as; what is below a picodollar is cut off. Less than nothing is nothing.
    pub fn from_dollars(dollars: f64) -> Self {
        let fits = dollars.is_finite() && dollars > 0.0;
        // The shortest decimal that reads as this number: what was meant, without the error of its binary form.
        Self(if fits { scaled(&dollars.to_string(), DECIMALS).unwrap_or(u64::MAX) } else { 0 })
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The part of it that `other` leaves.
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The nearest number there is in JSON and in metrics.
    pub fn dollars(self) -> f64 {
        self.to_string().parse().expect("digits around a point are a number")
    }

    /// [`Cost::dollars`] as JSON.
    pub fn to_json(self) -> Json {
        self.dollars().into()
    }
}

impl Rate {
    /// Dollars per million tokens as people write them; `None` for what is below 0, too large or finer than
    /// a millionth of a dollar.
    pub fn per_million(dollars: f64) -> Option<Self> {
        let text = dollars.to_string();
        let is_kept = text.split_once('.').is_none_or(|(_, decimals)| decimals.len() <= RATE_DECIMALS);
        (is_kept && dollars >= 0.0).then(|| scaled(&text, RATE_DECIMALS)).flatten().map(Self)
    }

    /// What `tokens` cost.
    pub fn of(self, tokens: u64) -> Cost {
        Cost(self.0.saturating_mul(tokens))
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Self::plus)
    }
}

/// Dollars with as many decimals as needed.
impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / PER_DOLLAR, self.0 % PER_DOLLAR);
        let decimals = format!("{rest:012}");
        match decimals.trim_end_matches('0') {
            "" => write!(f, "{whole}"),
            decimals => write!(f, "{whole}.{decimals}"),
        }
    }
}

/// A decimal without sign and exponent, times ten to the power of `decimals`; further decimals are cut off. `None` when
/// it is none or does not fit.
fn scaled(text: &str, decimals: usize) -> Option<u64> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let kept: String = rest.chars().chain(std::iter::repeat('0')).take(decimals).collect();
    let all = format!("{whole}{kept}");
    all.bytes().all(|byte| byte.is_ascii_digit()).then(|| all.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_counts() {
        for (dollars, shown) in
            [(0.1, "0.1"), (1.0, "1"), (12.345_678, "12.345678"), (1e-12, "0.000000000001")]
        {
            assert_eq!(Cost::from_dollars(dollars).to_string(), shown);
            assert!((Cost::from_dollars(dollars).dollars() - dollars).abs() < f64::EPSILON, "{dollars}");
        }
        for nothing in [0.0, -1.0, 1e-13, f64::NAN, f64::INFINITY] {
            assert_eq!(Cost::from_dollars(nothing), Cost::ZERO, "{nothing}");
        }
        assert_eq!(Cost::from_dollars(1e300), Cost(u64::MAX));
    }

    #[test]
    fn ten_times_ten_cents_are_a_dollar() {
        let cents = std::iter::repeat_n(Cost::from_dollars(0.1), 10);
        assert_eq!(cents.sum::<Cost>(), Cost::from_dollars(1.0));
        assert_eq!(Cost(u64::MAX).plus(Cost(1)), Cost(u64::MAX));
        assert_eq!(Cost(1).minus(Cost(2)), Cost::ZERO);
    }

    #[test]
    fn a_price_is_exact_to_the_token() {
        let rate = |dollars| Rate::per_million(dollars).expect("a price");
        assert_eq!(rate(2.5).of(1_000_000), Cost::from_dollars(2.5));
        assert_eq!(rate(0.075).of(1).to_string(), "0.000000075");
        assert_eq!(rate(0.000_001).of(3), Cost(3));
        assert_eq!(rate(75.0).of(u64::MAX), Cost(u64::MAX));
        for wrong in [-0.5, 0.000_000_1, 1e18, f64::NAN, f64::INFINITY] {
            assert_eq!(Rate::per_million(wrong), None, "{wrong}");
        }
    }
}
