//! Why TLS with a client failed: a closed set, for counters and logs.

/// Declares [`TlsFailure`] and its labels.
macro_rules! failures {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)*) => {
        /// Why a handshake with a client failed.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u8)]
        pub enum TlsFailure { $($(#[$doc])* $name,)* }

        impl TlsFailure {
            /// Every reason, in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The fixed label of metrics and logs.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

failures! {
    /// The client sent no server name, and there is no `fallback_sni`.
    NoSni => "no_sni",
    /// No certificate object serves the name.
    NoCertificate => "no_certificate",
    /// The first bytes are no TLS.
    NotTls => "not_tls",
    /// The first bytes begin as TLS and are none.
    Malformed => "malformed",
    /// No TLS version in common.
    Version => "version",
    /// No cipher suite in common.
    CipherSuite => "cipher_suite",
    /// No group for the key exchange in common.
    Group => "group",
    /// No signature scheme in common, so no certificate that the client could verify.
    SignatureScheme => "signature_scheme",
    /// The client showed no certificate where one is required.
    ClientCertificateMissing => "client_certificate_missing",
    /// The client's certificate is over, or not yet valid.
    ClientCertificateExpired => "client_certificate_expired",
    /// The client's certificate is of no CA that is trusted here, or is none that can be verified.
    ClientCertificateUntrusted => "client_certificate_untrusted",
    /// The client broke off with an alert: it does not take the certificate, as a rule.
    Alert => "alert",
    /// The client closed its connection in the middle.
    Closed => "closed",
    /// The handshake took too long.
    Timeout => "timeout",
    /// The client does not keep to the protocol.
    Protocol => "protocol",
}

impl TlsFailure {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The place in arrays of counters.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_indexes_are_one_to_one() {
        for (index, failure) in TlsFailure::ALL.iter().enumerate() {
            assert_eq!(failure.index(), index);
            let same = TlsFailure::ALL.iter().filter(|other| other.label() == failure.label());
            assert_eq!(same.count(), 1, "{}", failure.label());
        }
    }
}
