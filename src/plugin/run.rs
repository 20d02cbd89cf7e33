//! A session on its way through the plugins of its route.

use std::time::Duration;

use super::{Plugins, Scene};
use crate::session::Denied;

/// `preread_buffer_size` of nginx, which APISIX leaves as it is: plugins see no more first bytes, and a
/// session whose plugin needs more is closed (`preread_overflow`).
pub const MOST_FIRST_BYTES: usize = 16 * 1024;

/// What a plugin says about a session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Go on.
    Pass,
    /// Close it.
    Deny {
        /// What `apisix_stream_status` shows: 403, 503, …
        code: u16,
        /// For the log; reads on after the name of the plugin.
        why: String,
    },
    /// Go on, but only after so long.
    Wait(Duration),
    /// Ask again when the client has sent so many bytes in all, or more.
    Read(usize),
}

/// What is to be done with a session next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Every plugin was asked: choose a node.
    Done,
    /// Close it.
    Deny {
        /// Who says so.
        denied: Denied,
        /// For the log.
        why: String,
    },
    /// Wait so long, then ask on.
    Wait(Duration),
    /// Read until the client has sent so many bytes in all, then ask on.
    Read(usize),
}

/// How far a session has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    next: usize,
}

impl Run {
    /// Asks plugins until one wants something.
    pub fn step(&mut self, plugins: &Plugins, scene: &mut Scene<'_>) -> Step {
        while let Some(armed) = plugins.get(self.next) {
            if armed.class.reports || !armed.applies(&|name| scene.variable(name)) {
                self.next += 1;
                continue;
            }
            match armed.plugin.preread(scene) {
                Decision::Pass => self.next += 1,
                Decision::Wait(time) => {
                    self.next += 1;
                    return Step::Wait(time);
                }
                Decision::Read(wanted) => return Step::Read(wanted),
                Decision::Deny { code, why } => {
                    let plugin = armed.class.name;
                    return Step::Deny { denied: Denied { plugin, code }, why: format!("{plugin}: {why}") };
                }
            }
        }
        Step::Done
    }

    /// The plugin that is asked next, for a sentence about it.
    #[must_use]
    pub fn asking(&self, plugins: &Plugins) -> &'static str {
        plugins.get(self.next).map_or("", |armed| armed.class.name)
    }
}
