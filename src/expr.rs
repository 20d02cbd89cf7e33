//! Filter expressions: `_meta.filter` of a plugin and `match.vars` of traffic-split.
//!
//! The language is lua-resty-expr 1.3.2: an array of conditions that must all hold, or an operator
//! (`AND`, `OR`, `!AND`, `!OR`) and what it joins. What that library refuses is refused here, and so
//! is what makes it raise. Pure: variables come from a function.

mod compile;
mod eval;

use std::fmt;

use regex::bytes::Regex;
use serde_json::Value;

use crate::addr::IpMatcher;

/// A compiled expression.
#[derive(Clone, Debug, Default)]
pub struct Expr(Option<Rule>);

/// One node of the tree.
#[derive(Clone, Debug)]
enum Rule {
    /// Joined rules; there is at least one.
    Group { any: bool, negated: bool, rules: Vec<Rule> },
    /// One comparison.
    Condition { variable: Box<str>, negated: bool, test: Test },
}

/// What a variable is compared with.
#[derive(Clone, Debug)]
enum Test {
    Equal {
        to: Operand,
        negated: bool,
    },
    Order {
        order: Order,
        than: Option<f64>,
    },
    /// `None`: the pattern does not compile, and never matches.
    Match(Option<Box<Regex>>, Box<str>),
    In(Vec<Box<str>>),
    /// `has`: a variable of a stream is never a list.
    Has,
    Ip(Vec<IpMatcher>),
}

/// The right side of `==`.
#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Text(Box<str>),
    Number(f64),
    /// null: equal to a variable that is not there.
    Absent,
    /// A boolean or a container: equal to no variable.
    Other,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Expr {
    /// Compiles the JSON form. An empty array (or object: the same thing in Lua) always holds.
    pub fn compile(value: &Value) -> Result<Self, ExprError> {
        compile::expression(value).map(Self)
    }

    /// Reports whether the expression holds; `variable` gives the text of a variable, `None` for one
    /// that is not there.
    pub fn holds<T: AsRef<str>>(&self, variable: &impl Fn(&str) -> Option<T>) -> bool {
        self.0.as_ref().is_none_or(|rule| rule.holds(variable))
    }

    /// The patterns that do not compile and therefore never match, in their order. APISIX's engine
    /// (PCRE) knows look-around and back references; ours, which takes linear time, does not.
    #[must_use]
    pub fn dead_patterns(&self) -> Vec<&str> {
        let mut found = Vec::new();
        let mut rules: Vec<&Rule> = self.0.iter().collect();
        while let Some(rule) = rules.pop() {
            match rule {
                Rule::Group { rules: inner, .. } => rules.extend(inner.iter().rev()),
                Rule::Condition { test: Test::Match(None, pattern), .. } => found.push(&**pattern),
                Rule::Condition { .. } => {}
            }
        }
        found
    }
}

/// Why an expression does not compile; a sentence for the operator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExprError {
    /// Where, as a JSON pointer into the expression.
    pub path: String,
    what: String,
}

impl fmt::Display for ExprError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ExprError {}
