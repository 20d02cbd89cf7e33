//! A probe that asks by HTTP, over TLS or not.

use super::{Plan, Probed};
use crate::balance::Target;

/// Whom probes by https trust.
#[derive(Debug, Default)]
pub struct Trust {}

pub(super) async fn probe(_plan: &Plan, _target: &Target) -> Probed {
    None
}
