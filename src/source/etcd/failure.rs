//! What can end a session with etcd, sorted by what is to be done about it.

use std::error::Error;

use etcd_client::Error as EtcdError;
use tonic::Code;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The reader of the batches is gone: nothing is left to do.
    #[error("nobody reads the changes any more")]
    Closed,
    /// No connection came about, or it broke. The next endpoint may do better.
    #[error("{0}")]
    Connection(String),
    /// The token is too old: authenticate again.
    #[error("etcd no longer takes the token of this session ({0})")]
    Token(String),
    /// The changes since the applied revision cannot be had: read everything.
    #[error("{0}")]
    Position(String),
    /// One answer is larger than we take.
    #[error("an answer of etcd is larger than the limit: {0}")]
    TooLarge(String),
    /// etcd answered, and refused.
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    /// Sorts what etcd-client reports for `request`, such as "list the objects".
    pub(super) fn from_etcd(request: &str, error: &EtcdError) -> Self {
        match error {
            EtcdError::GRpcStatus(status) => Self::from_status(request, status),
            other => Self::Connection(format!("could not {request}: {}", chain(other))),
        }
    }

    /// Sorts the reason that etcd gives for cancelling a watch.
    pub(super) fn from_cancel(compact_revision: i64, reason: &str) -> Self {
        if compact_revision > 0 {
            return Self::Position(format!("etcd has compacted its history up to {compact_revision}"));
        }
        let reason = if reason.is_empty() { "no reason given" } else { reason };
        // 3.4 names a missing permission even where the token is too old
        // (`isWatchPermitted` in etcd's server/etcdserver/api/v3rpc/watch.go), later ones are exact.
        if reason.contains("permission denied") || is_about_token(reason) {
            return Self::Token(format!("the watch was refused: {reason}"));
        }
        Self::Connection(format!("etcd cancelled the watch: {reason}"))
    }

    /// A deadline passed.
    pub(super) fn timeout(request: &str, after: std::time::Duration) -> Self {
        Self::Connection(format!("could not {request}: no answer within {after:?}"))
    }

    fn from_status(request: &str, status: &tonic::Status) -> Self {
        let message = status.message();
        if status.code() == Code::Unauthenticated || is_about_token(message) {
            return Self::Token(message.into());
        }
        if message.contains("revision has been compacted") || message.contains("future revision") {
            return Self::Position(format!("etcd: {message}"));
        }
        // tonic's words, `codec/decode.rs`; etcd uses the code for revisions only.
        if status.code() == Code::OutOfRange && message.contains("message length too large") {
            return Self::TooLarge(message.into());
        }
        match status.code() {
            Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument => {
                Self::Refused(format!("could not {request}: {message}"))
            }
            code if message.is_empty() => Self::Connection(format!("could not {request}: {code:?}")),
            _ => Self::Connection(format!("could not {request}: {}", status_chain(status))),
        }
    }
}

/// Whether a new token may help (etcd's `api/v3rpc/rpctypes/error.go`): it ran out, or users and
/// roles were changed since it was given.
fn is_about_token(message: &str) -> bool {
    message.contains("invalid auth token") || message.contains("revision of auth store is old")
}

/// What a failure asks of the operator, by words of etcd and rustls. In TLS 1.3 a refused client
/// certificate shows only when the first request is answered, deep inside other errors.
const ADVICE: [(&str, &str); 8] = [
    ("permission denied", "the user needs a role that may read below the prefix"),
    ("user name is empty", "set deployment.etcd.user and deployment.etcd.password"),
    ("UnknownIssuer", "its CA is not in apisix.ssl.ssl_trusted_certificate"),
    ("BadSignature", "apisix.ssl.ssl_trusted_certificate holds another CA of that name"),
    ("not valid for name", "deployment.etcd.tls.sni sets the name to verify"),
    ("alert: BadCertificate", "etcd wants a client certificate; see deployment.etcd.tls.cert"),
    ("alert: CertificateRequired", "etcd wants a client certificate; see deployment.etcd.tls.cert"),
    ("corrupt message", "does this endpoint speak TLS?"),
];

/// `sentence`, with advice where there is some.
pub(super) fn advise(sentence: String) -> String {
    match ADVICE.iter().find(|(words, _)| sentence.contains(words)) {
        Some((_, advice)) => format!("{sentence}; {advice}"),
        None => sentence,
    }
}

/// An error with its causes, each said once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn status_chain(status: &tonic::Status) -> String {
    let causes = status.source().map(chain).filter(|causes| !status.message().contains(causes.as_str()));
    match causes {
        Some(causes) => format!("{}: {causes}", status.message()),
        None => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: Code, message: &str, expected: &str) {
        let error = EtcdError::GRpcStatus(tonic::Status::new(code, message));
        let failure = Failure::from_etcd("list the objects", &error);
        let debug = format!("{failure:?}");
        assert!(debug.starts_with(expected), "{debug}");
    }

    #[test]
    fn answers_are_sorted_by_what_helps() {
        check(Code::Unauthenticated, "etcdserver: invalid auth token", "Token");
        check(Code::InvalidArgument, "etcdserver: revision of auth store is old", "Token");
        check(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", "Position");
        check(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", "Position");
        check(Code::OutOfRange, "Error, decoded message length too large: found 9, limit 4", "TooLarge");
        check(Code::PermissionDenied, "etcdserver: permission denied", "Refused");
        check(Code::Unavailable, "etcdserver: no leader", "Connection");
    }

    #[test]
    fn cancelled_watches_are_sorted_too() {
        assert!(matches!(Failure::from_cancel(7, ""), Failure::Position(_)));
        assert!(matches!(Failure::from_cancel(0, "etcdserver: permission denied"), Failure::Token(_)));
        assert!(matches!(Failure::from_cancel(0, "etcdserver: no leader"), Failure::Connection(_)));
    }

    #[test]
    fn advice_follows_the_sentence() {
        let advised = advise("received fatal alert: BadCertificate".into());
        assert!(advised.ends_with("see deployment.etcd.tls.cert"), "{advised}");
        assert_eq!(advise("connection refused".into()), "connection refused");
    }
}
