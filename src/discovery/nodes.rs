//! Instances as a registry writes them, to nodes in a fixed order.

use serde_json::Value;

use crate::resource::Node;

/// The instances of an answer that can be used, in a fixed order; `read` gives `None` for one that is not
/// to serve, and an error for one that makes no sense. Those are left out, unless there is no other.
pub(super) fn collect(
    instances: &[Value],
    mut read: impl FnMut(&Value) -> Result<Option<Node>, String>,
) -> Result<Vec<Node>, String> {
    let (mut nodes, mut odd) = (Vec::new(), None);
    for instance in instances {
        match read(instance) {
            Ok(node) => nodes.extend(node),
            Err(why) => odd = Some(why),
        }
    }
    match odd {
        Some(why) if nodes.is_empty() => {
            Err(format!("none of its {} instances makes sense: one {why}", instances.len()))
        }
        Some(why) => {
            tracing::debug!("an instance is left out: it {why}");
            Ok(sorted(nodes))
        }
        None => Ok(sorted(nodes)),
    }
}

/// By host and port; of several on one address the heaviest.
fn sorted(mut nodes: Vec<Node>) -> Vec<Node> {
    nodes.sort_by(|one, other| {
        let places = (&one.written, one.port).cmp(&(&other.written, other.port));
        places.then(other.weight.cmp(&one.weight))
    });
    nodes.dedup_by(|later, former| later.written == former.written && later.port == former.port);
    nodes
}

/// A text that may be missing.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A number, also one that is written as a text.
pub(super) fn number(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
    .filter(|number| number.is_finite())
}

/// A port, 0 included.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked before")]
pub(super) fn port(value: Option<&Value>) -> Option<u16> {
    let number = number(value)?;
    (number.fract() == 0.0 && (0.0..65536.0).contains(&number)).then_some(number as u16)
}

/// A weight, where it is a number; cut to what one can be.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, as wanted here")]
pub(super) fn weight(number: f64) -> u32 {
    number as u32
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Holds what was read of an answer to the nodes it should give, each as `host:port*weight`, or to a
    /// part of the sentence that says why it gives none.
    #[track_caller]
    pub(in super::super) fn check(
        found: &Result<Vec<Node>, String>,
        answer: &Value,
        expected: Result<&str, &str>,
    ) {
        let one = |node: &Node| format!("{}:{}*{}", node.written, node.port, node.weight);
        let told = found.as_ref().map(|nodes| nodes.iter().map(one).collect::<Vec<_>>().join(" "));
        match (&told, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{answer}"),
            (Err(error), Err(part)) => assert!(error.contains(part), "{answer}: {error}"),
            _ => panic!("{answer}: {told:?}"),
        }
    }
}
