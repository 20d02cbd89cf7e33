//! What an error of the DNS client means: an answer, or that there is none.

use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;

use super::Nothing;

/// Why nobody knows what a name is; a sentence for the operator.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{sentence}")]
pub struct Failure {
    sentence: String,
    silence: bool,
}

impl Failure {
    /// No server said anything.
    pub(crate) fn silent(sentence: String) -> Self {
        Self { sentence, silence: true }
    }

    /// Whether no server said anything, not even that it cannot answer.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        self.silence
    }
}

/// What an error says.
#[derive(Debug)]
pub(super) enum Known {
    Nothing(Nothing),
    Failure(Failure),
}

/// Sorts an error of the client. `servers` are those that were asked, for the message.
pub(super) fn known(error: NetError, servers: &str) -> Known {
    let code = match error {
        NetError::Dns(DnsError::NoRecordsFound(NoRecords { response_code, .. })) => match response_code {
            ResponseCode::NXDomain => return Known::Nothing(Nothing::NoName),
            ResponseCode::NoError => return Known::Nothing(Nothing::NoRecords),
            code => code,
        },
        NetError::Dns(DnsError::ResponseCode(code)) => code,
        error => return Known::Failure(unanswered(&error, servers)),
    };
    let sentence = format!("the DNS server answers with an error: {code} ({servers})");
    Known::Failure(Failure { sentence, silence: false })
}

fn unanswered(error: &NetError, servers: &str) -> Failure {
    match error {
        NetError::Timeout => Failure::silent(format!("no DNS server answers in time ({servers})")),
        NetError::Io(error) => Failure::silent(format!("no DNS server can be reached ({servers}): {error}")),
        NetError::NoConnections | NetError::Busy => {
            Failure::silent(format!("no DNS server can be reached ({servers})"))
        }
        // An answer that makes no sense is that server's alone.
        error => Failure {
            sentence: format!("the DNS server's answer cannot be used ({servers}): {error}"),
            silence: false,
        },
    }
}
