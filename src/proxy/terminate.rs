//! TLS with a client: the certificate for its name, the handshake, and why that failed.

use std::fmt::Write as _;
use std::pin::Pin;

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::certs::shown::client_certificate;
use crate::net::tls::Session;
use crate::net::tls::handshake::{self, HandshakeError};
use crate::net::transfer::send_some;
use crate::proxy::opening::{Heard, lost};
use crate::proxy::record::Record;
use crate::proxy::worker::Refusal;
use crate::session::{End, TlsFacts, TlsFailure};
use crate::sni::hello::{Hello, Offer, parse_message};

/// Fatal alerts as records of their own (RFC 8446 6): of a client whose hello cannot be read,
pub(super) const DECODE_ERROR: [u8; 7] = alert(50);
/// that names a server which is not here (RFC 6066 3),
const UNRECOGNIZED_NAME: [u8; 7] = alert(112);
/// that names none (RFC 8446 9.2),
const MISSING_EXTENSION: [u8; 7] = alert(109);
/// and that speaks only older versions.
const PROTOCOL_VERSION: [u8; 7] = alert(70);

/// The code of TLS 1.2, the oldest version that is spoken.
const OLDEST: u16 = 0x0303;

const fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

/// Sends an alert, as far as the system takes it at once.
pub(super) fn tell(client: &TcpStream, alert: [u8; 7]) {
    // A client that has gone needs no alert.
    let _ = send_some(client, &alert);
}

/// Counts a failed handshake and says how the session ends.
pub(super) fn failed(record: &Record, failure: TlsFailure, why: &str) -> Refusal {
    record.worker.shared.node.tls.failed(failure);
    let end = match failure {
        TlsFailure::NoSni => End::TlsNoSni,
        TlsFailure::NoCertificate => End::TlsNoCertificate,
        _ => End::TlsFailed,
    };
    (end, format!("{}: {why}", failure.label()))
}

/// Shakes hands with a client whose hello is at the beginning of `received`, within the time that the timer
/// is set to.
pub(super) async fn shake_hands(
    record: &mut Record,
    client: &TcpStream,
    (received, heard): (&[u8], Heard),
    timer: Pin<&mut Sleep>,
) -> Result<Session, Refusal> {
    let Some(name) = record.inbound.sni.clone() else {
        tell(client, MISSING_EXTENSION);
        let why = "the client names no server and apisix.ssl.fallback_sni is not set";
        return Err(failed(record, TlsFailure::NoSni, why));
    };
    let Some(served) = record.worker.certificate(&name) else {
        tell(client, UNRECOGNIZED_NAME);
        let why = format!("no ssl has a certificate for {name}");
        return Err(failed(record, TlsFailure::NoCertificate, &why));
    };
    // The TLS library would miss other things first, which older versions do not have.
    let older = |hello: &Hello<'_>| hello.versions().all(|version| version < OLDEST);
    if let Some(hello) = parse_message(&heard.message).filter(older) {
        tell(client, PROTOCOL_VERSION);
        let why =
            format!("the client has no TLS version that is spoken here; the client offers {}", Offer(hello));
        return Err(failed(record, TlsFailure::Version, &why));
    }
    let mut session = Session::server(served.config(heard.max_fragment), received)
        .map_err(|error| (End::Internal, format!("ssl {} cannot be served: {error}", served.id)))?;
    match handshake::complete(&mut session, client, timer).await {
        Ok(()) => {
            let facts = facts(&session);
            record.worker.shared.node.tls.done(facts.resumed);
            // The handshake has verified it. Most clients show none.
            let shown = session.facts().peer_certificates().and_then(|chain| chain.first());
            let brought = record.inbound.brought();
            brought.certificate = shown.and_then(|leaf| client_certificate(leaf)).map(Box::new);
            brought.tls = Some(facts);
            Ok(session)
        }
        Err(error) => Err(refusal(record, error, &heard)),
    }
}

fn facts(session: &Session) -> TlsFacts {
    let facts = session.facts();
    let suite = facts.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
    TlsFacts {
        protocol: match facts.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        },
        suite: suite.unwrap_or_default(),
        resumed: facts.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
    }
}

fn refusal(record: &Record, error: HandshakeError, heard: &Heard) -> Refusal {
    let (mut failure, mut why) = match error {
        HandshakeError::TimedOut => {
            let limit = record.listen.handshake_timeout;
            (TlsFailure::Timeout, format!("no handshake within {limit:?}"))
        }
        HandshakeError::Closed => {
            (TlsFailure::Closed, "the client closed in the middle of the handshake".into())
        }
        HandshakeError::Io(error) => {
            record.worker.shared.node.tls.failed(TlsFailure::Closed);
            return lost(&error);
        }
        HandshakeError::Tls(error) => classified(&error),
    };
    if let Some(hello) = parse_message(&heard.message) {
        // Suites without a key exchange of their own name no group.
        if failure == TlsFailure::Group && hello.groups().next().is_none() {
            failure = TlsFailure::CipherSuite;
            why = "the client has only cipher suites without elliptic curves (RSA, DHE), which are not spoken here"
                .into();
        }
        let _ = write!(why, "; the client offers {}", Offer(hello));
    }
    failed(record, failure, &why)
}

/// The reason behind an error of the TLS library, as a sentence.
fn classified(error: &Error) -> (TlsFailure, String) {
    let (failure, advice) = match error {
        Error::AlertReceived(alert) => return (TlsFailure::Alert, refused(*alert)),
        Error::NoCertificatesPresented => (
            TlsFailure::ClientCertificateMissing,
            "the client shows no certificate, and this ssl requires one",
        ),
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => (TlsFailure::ClientCertificateExpired, "the client's certificate is not valid today"),
        Error::InvalidCertificate(_) => (
            TlsFailure::ClientCertificateUntrusted,
            "the client's certificate is not one that client.ca vouches for within client.depth",
        ),
        Error::PeerIncompatible(incompatible) => {
            use PeerIncompatible as Peer;
            match incompatible {
                Peer::Tls12NotOffered
                | Peer::Tls12NotOfferedOrEnabled
                | Peer::Tls13RequiredForQuic
                | Peer::SupportedVersionsExtensionRequired
                | Peer::ServerTlsVersionIsDisabledByOurConfig => {
                    (TlsFailure::Version, "the client has no TLS version that this ssl allows")
                }
                Peer::NoCipherSuitesInCommon => {
                    (TlsFailure::CipherSuite, "the client has no cipher suite that is spoken here")
                }
                Peer::NoKxGroupsInCommon
                | Peer::NamedGroupsExtensionRequired
                | Peer::NoEcPointFormatsInCommon
                | Peer::EcPointsExtensionRequired
                | Peer::UncompressedEcPointsRequired
                | Peer::KeyShareExtensionRequired => {
                    (TlsFailure::Group, "the client has no key exchange that is spoken here")
                }
                Peer::NoSignatureSchemesInCommon
                | Peer::NoCertificateRequestSignatureSchemesInCommon
                | Peer::SignatureAlgorithmsExtensionRequired => {
                    (TlsFailure::SignatureScheme, "the client can verify no certificate of this ssl")
                }
                _ => (TlsFailure::Protocol, "the client lacks something that is required"),
            }
        }
        Error::General(_) => (TlsFailure::Protocol, "the handshake cannot be made here"),
        _ => (TlsFailure::Protocol, "the client does not keep to TLS"),
    };
    (failure, format!("{advice} ({error})"))
}

/// What an alert of the client says.
fn refused(alert: AlertDescription) -> String {
    let advice = match alert {
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown => ": it does not trust the certificate",
        AlertDescription::CertificateExpired => ": it says that the certificate is over",
        _ => "",
    };
    format!("the client broke off with the alert {alert:?}{advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: &Error, expected: TlsFailure, words: &str) {
        let (failure, why) = classified(error);
        assert_eq!(failure, expected, "{why}");
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn errors_have_reasons() {
        check(&PeerIncompatible::Tls12NotOffered.into(), TlsFailure::Version, "TLS version");
        check(&PeerIncompatible::NoCipherSuitesInCommon.into(), TlsFailure::CipherSuite, "cipher suite");
        check(&CertificateError::UnknownIssuer.into(), TlsFailure::ClientCertificateUntrusted, "client.ca");
        check(&CertificateError::Expired.into(), TlsFailure::ClientCertificateExpired, "not valid today");
        check(&Error::NoCertificatesPresented, TlsFailure::ClientCertificateMissing, "shows no certificate");
        check(&Error::AlertReceived(AlertDescription::UnknownCA), TlsFailure::Alert, "does not trust");
        check(&Error::DecryptError, TlsFailure::Protocol, "decrypt");
    }

    #[test]
    fn alerts_are_fatal_and_whole() {
        assert_eq!(UNRECOGNIZED_NAME, [0x15, 3, 3, 0, 2, 2, 112]);
    }
}
