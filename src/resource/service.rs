//! services (`apisix/http/service.lua:121`): what a stream uses of them.

use std::sync::Arc;

use serde_json::Value;

use super::document::Document;
use super::plugins::{self, Owner};
use super::rules::{Notes, Rejection, Rules};
use super::{Service, upstream};

pub(super) fn parse(
    rules: &Rules,
    id: &Arc<str>,
    mut value: Value,
    notes: &mut Notes,
) -> Result<Service, Rejection> {
    rules.schemas.service.check(&mut value, "")?;
    let mut fields = Document::from(value);
    let plugins = plugins::parse(rules, fields.nested("plugins").into_fields(), Owner::Service, notes)?;
    if rules.standalone && !plugins.is_empty() {
        notes.differs(
            "SG-002",
            "APISIX drops a service with plugins that comes from a file, and the sessions of its routes fail; here \
             it serves"
                .into(),
        );
    }
    let inline = fields.take("upstream");
    let owner = format!("the upstream of service {id}");
    Ok(Service {
        id: Arc::clone(id),
        name: fields.boxed("name"),
        upstream: inline.map(|inline| Arc::new(upstream::inline(rules, inline.into(), &owner, notes))),
        upstream_id: fields.id("upstream_id"),
        plugins,
    })
}
