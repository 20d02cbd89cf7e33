//! From JSON to the tree, by the rules of `resty/expr/v1.lua`. It nests as deep as the JSON decoder lets
//! it (128), so recursion is bounded.

use std::fmt::Write as _;

use regex::bytes::{Regex, RegexBuilder};
use serde_json::Value;

use super::{ExprError, Operand, Order, Rule, Test};
use crate::addr::IpMatcher;
use crate::number;

/// Where in the expression the compiler stands, outermost first.
#[derive(Clone, Copy)]
struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    index: usize,
}

impl Place<'_> {
    fn child(&self, index: usize) -> Place<'_> {
        Place { parent: Some(self), index }
    }

    fn path(&self) -> String {
        let mut path = self.parent.map(Place::path).unwrap_or_default();
        if self.parent.is_some() {
            let _ = write!(path, "/{}", self.index);
        }
        path
    }

    fn error(&self, what: impl Into<String>) -> ExprError {
        ExprError { path: self.path(), what: what.into() }
    }
}

pub(super) fn expression(value: &Value) -> Result<Option<Rule>, ExprError> {
    let place = Place { parent: None, index: 0 };
    let rule = match value {
        Value::Array(rule) => rule,
        Value::Object(map) if map.is_empty() => return Ok(None),
        other => {
            return Err(place.error(format!("an expression is an array of conditions, not {}", shown(other))));
        }
    };
    match rule.first() {
        None => Ok(None),
        Some(Value::Array(_) | Value::Object(_)) => compile(rule, place).map(Some),
        Some(first) if logic(first).is_some() => compile(rule, place).map(Some),
        Some(first) => Err(place.error(format!(
            "an expression begins with a condition in brackets or with AND, OR, !AND or !OR, not with {}; \
             write [[{}, …]] for one condition",
            shown(first),
            shown(first)
        ))),
    }
}

/// `any` and `negated` of a logic operator; its case does not count.
fn logic(value: &Value) -> Option<(bool, bool)> {
    match value.as_str()?.to_ascii_uppercase().as_str() {
        "AND" => Some((false, false)),
        "OR" => Some((true, false)),
        "!AND" => Some((false, true)),
        "!OR" => Some((true, true)),
        _ => None,
    }
}

fn compile(rule: &[Value], place: Place<'_>) -> Result<Rule, ExprError> {
    let inner = |skip: usize| -> Result<Vec<Rule>, ExprError> {
        rule.iter()
            .enumerate()
            .skip(skip)
            .map(|(index, one)| compile_value(one, place.child(index)))
            .collect()
    };
    let Some(first) = rule.first() else {
        return Err(place.error("an empty condition; a condition is [variable, operator, value]"));
    };
    if matches!(first, Value::Array(_) | Value::Object(_)) {
        return Ok(Rule::Group { any: false, negated: false, rules: inner(0)? });
    }
    match logic(first) {
        Some(_) if rule.len() <= 2 => {
            Err(place.error(format!("{} joins two conditions or more", shown(first))))
        }
        Some((any, negated)) => Ok(Rule::Group { any, negated, rules: inner(1)? }),
        None => condition(rule, first, place),
    }
}

fn compile_value(value: &Value, place: Place<'_>) -> Result<Rule, ExprError> {
    match value {
        Value::Array(rule) => compile(rule, place),
        // To Lua an object is an array without entries.
        Value::Object(_) => compile(&[], place),
        other => {
            Err(place.error(format!("a condition is [variable, operator, value], not {}", shown(other))))
        }
    }
}

fn condition(rule: &[Value], first: &Value, place: Place<'_>) -> Result<Rule, ExprError> {
    let variable = lua_text(first)
        .ok_or_else(|| place.error(format!("a condition begins with a variable, not {}", shown(first))))?;
    let (negated, operator, operand) = match rule {
        [_, not, operator, operand] => {
            if not.as_str() != Some("!") {
                let not = shown(not);
                return Err(place.error(format!("with four entries the second is `!`, not {not}")));
            }
            (true, Some(operator), Some(operand))
        }
        _ => (false, rule.get(1), rule.get(2)),
    };
    let operator = operator.ok_or_else(|| {
        place.error(format!("{} is compared with nothing; write [variable, operator, value]", shown(first)))
    })?;
    // Lower-cased even where it turns out to be a value: `["a", "ABC"]` compares with `abc`.
    let operator = lua_text(operator)
        .ok_or_else(|| place.error(format!("an operator is a text, not {}", shown(operator))))?
        .to_ascii_lowercase();
    let test = match (test(&operator, operand.unwrap_or(&Value::Null), place)?, operand) {
        (Some(test), _) => test,
        (None, None) => Test::Equal { to: Operand::Text(operator.into()), negated: false },
        (None, Some(_)) => {
            return Err(place.error(format!(
                "operator `{operator}` is unknown; there are ==, ~=, >, >=, <, <=, ~~, ~*, in, has, ipmatch"
            )));
        }
    };
    Ok(Rule::Condition { variable: variable.into(), negated, test })
}

/// The test of an operator; `None` for a text that is none.
fn test(operator: &str, operand: &Value, place: Place<'_>) -> Result<Option<Test>, ExprError> {
    let order = |order| Test::Order { order, than: lua_number(operand) };
    Ok(Some(match operator {
        "==" => Test::Equal { to: right_side(operand), negated: false },
        "~=" => Test::Equal { to: right_side(operand), negated: true },
        ">" => order(Order::Greater),
        ">=" => order(Order::GreaterOrEqual),
        "<" => order(Order::Less),
        "<=" => order(Order::LessOrEqual),
        "~~" => pattern(operand, false),
        "~*" => pattern(operand, true),
        "in" => Test::In(texts(operand)),
        "has" => Test::Has,
        "ipmatch" => Test::Ip(networks(operand, place)?),
        _ => return Ok(None),
    }))
}

fn right_side(operand: &Value) -> Operand {
    match operand {
        Value::String(text) => Operand::Text(text.as_str().into()),
        Value::Number(_) => lua_number(operand).map_or(Operand::Other, Operand::Number),
        Value::Null => Operand::Absent,
        _ => Operand::Other,
    }
}

/// Only texts can equal a variable, which always is one.
fn texts(operand: &Value) -> Vec<Box<str>> {
    let list = operand.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(Box::from).collect()
}

/// Bytes, ASCII classes: PCRE without its UTF mode, as APISIX runs it.
fn pattern(operand: &Value, ignore_case: bool) -> Test {
    let text = match operand {
        Value::Null => "nil".into(),
        Value::Bool(truth) => truth.to_string(),
        // A container prints as its address there, which nothing matches.
        other => match lua_text(other) {
            Some(text) => text,
            None => return Test::Match(None, shown(other).into()),
        },
    };
    let compiled: Option<Regex> =
        RegexBuilder::new(&text).unicode(false).case_insensitive(ignore_case).build().ok();
    Test::Match(compiled.map(Box::new), text.into())
}

fn networks(operand: &Value, place: Place<'_>) -> Result<Vec<IpMatcher>, ExprError> {
    let list = match operand {
        Value::Array(list) => list.as_slice(),
        other => std::slice::from_ref(other),
    };
    if list.is_empty() {
        return Err(place.error("ipmatch needs an address or a network"));
    }
    let mut found = Vec::with_capacity(list.len());
    for entry in list {
        let text = entry.as_str().filter(|text| !text.is_empty());
        let refused = || place.error(format!("ipmatch takes an address or a network, not {}", shown(entry)));
        found.extend(network(text.ok_or_else(refused)?).map_err(|()| refused())?);
    }
    Ok(found)
}

/// `resty/ipmatcher.lua`: the address must be one; what follows the slash is a Lua number, or nothing.
/// A mask out of range passes and matches nothing: `None`.
fn network(text: &str) -> Result<Option<IpMatcher>, ()> {
    let (address, mask) = text.split_once('/').map_or((text, None), |(address, mask)| (address, Some(mask)));
    let address = address.split('\0').next().unwrap_or_default();
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let single: IpMatcher = bare.parse().map_err(|_| ())?;
    Ok(match mask.and_then(number::from_text) {
        None => Some(single),
        Some(mask) => format!("{bare}/{}", number::to_text(mask)).parse().ok(),
    })
}

fn lua_number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => number::from_text(text),
        _ => None,
    }
}

/// Texts, and numbers as Lua prints them.
fn lua_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => number.as_f64().map(number::to_text),
        _ => None,
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((cut, _)) => format!("{}…", text.get(..cut).unwrap_or_default()),
        None => text,
    }
}
