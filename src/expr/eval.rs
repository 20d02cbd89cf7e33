//! Whether an expression holds for the variables of a session.

use std::net::IpAddr;

use super::{Operand, Order, Rule, Test};
use crate::number;

impl Rule {
    pub(super) fn holds<T: AsRef<str>>(&self, variable: &impl Fn(&str) -> Option<T>) -> bool {
        match self {
            Self::Group { any, negated, rules } => {
                let joined = if *any {
                    rules.iter().any(|rule| rule.holds(variable))
                } else {
                    rules.iter().all(|rule| rule.holds(variable))
                };
                joined != *negated
            }
            Self::Condition { variable: name, negated, test } => {
                test.holds(variable(name).as_ref().map(AsRef::as_ref)) != *negated
            }
        }
    }
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Self::Equal { to, negated } => to.equals(value) != *negated,
            Self::Order { order, than } => match (value.and_then(number::from_text), than) {
                (Some(left), Some(right)) => order.holds(left, *right),
                _ => false,
            },
            Self::Match(pattern, _) => {
                value.zip(pattern.as_deref()).is_some_and(|(text, pattern)| pattern.is_match(text.as_bytes()))
            }
            Self::In(texts) => value.is_some_and(|value| texts.iter().any(|text| **text == *value)),
            Self::Has => false,
            Self::Ip(networks) => {
                let address: Option<IpAddr> = value.and_then(|text| text.parse().ok());
                address.is_some_and(|address| networks.iter().any(|network| network.contains(address)))
            }
        }
    }
}

impl Operand {
    #[expect(clippy::float_cmp, reason = "Lua's equality")]
    fn equals(&self, value: Option<&str>) -> bool {
        match self {
            Self::Text(text) => value == Some(text),
            Self::Number(number) => value.and_then(number::from_text).is_some_and(|value| value == *number),
            Self::Absent => value.is_none(),
            Self::Other => false,
        }
    }
}

impl Order {
    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
        }
    }
}
