//! TLS to the server: whom we trust, who we say we are, and the greeting.

use std::fmt;
use std::io;
use std::sync::Arc;

use redis::{ErrorKind, RedisError};
use rustls_native_certs::load_native_certs;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::address::{is_tls, unusable};

/// What a handle was given beside its URL, as PEM that nobody has read yet.
#[derive(Clone, Default)]
pub(crate) struct Trust {
    roots: Vec<Box<[u8]>>,
    identity: Option<Identity>,
}

#[derive(Clone)]
struct Identity {
    chain: Box<[u8]>,
    key: Zeroizing<Box<[u8]>>,
}

impl Trust {
    /// Trusts these roots, and those that were given before, instead of the platform's.
    pub(crate) fn root_certificates(&mut self, pem: &[u8]) {
        self.roots.push(pem.into());
    }

    /// Says who we are where a server asks.
    pub(crate) fn client_certificate(&mut self, chain_pem: &[u8], key_pem: &[u8]) {
        self.identity = Some(Identity {
            chain: chain_pem.into(),
            key: Zeroizing::new(key_pem.into()),
        });
    }

    fn is_empty(&self) -> bool {
        self.roots.is_empty() && self.identity.is_none()
    }
}

/// How all servers of one handle are greeted. Clones share what is remembered of earlier greetings, so that a link that
/// was cut is made again by a shorter one.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    shows_certificate: bool,
}

impl Tls {
    /// Returns what `url` asks for: nothing, where its scheme is no TLS.
    pub(super) async fn of(url: &str, trust: Trust) -> Result<Option<Self>, RedisError> {
        if is_tls(url) {
            Self::new(trust).await.map(Some)
        } else if trust.is_empty() {
            Ok(None)
        } else {
            // Whoever gave them believes that the link is secret.
            Err(unusable(
                "certificates are given, but the URL asks for no TLS: use rediss://",
            ))
        }
    }

    async fn new(trust: Trust) -> Result<Self, RedisError> {
        // A provider of our own: what the application has installed, or will, for its whole process stays its own.
        let provider = Arc::new(ring::default_provider());
        let roots = roots(&trust).await?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| refused("no version of TLS can be used", &error))?
            .with_root_certificates(roots);
        let config = match &trust.identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.read()?;
                config
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| refused("the client certificate cannot be used", &error))?
            }
        };
        Ok(Self {
            connector: Arc::new(config).into(),
            shows_certificate: trust.identity.is_some(),
        })
    }

    /// Greets the server by the name it was asked for under, which its certificate has to have. The caller bounds the
    /// time.
    pub(super) async fn greet(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, RedisError> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let greeted = self.connector.connect(name, stream).await;
        greeted.map_err(|error| {
            let why = format!("the TLS greeting failed: {error}");
            io::Error::new(error.kind(), why).into()
        })
    }

    /// Says more of a connection that ended with its first words: in TLS 1.3 a server asks for a certificate when the
    /// client has been greeted already, and hangs up where there is none.
    pub(super) fn explained(&self, error: RedisError) -> RedisError {
        if self.shows_certificate || !error.is_io_error() {
            return error;
        }
        let why = format!("behind the TLS greeting, without a client certificate: {error}");
        io::Error::new(io::ErrorKind::NotConnected, why).into()
    }
}

impl fmt::Debug for Tls {
    /// What it knows is left out: a private key is part of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// The roots that were given, or else the platform's.
async fn roots(trust: &Trust) -> Result<RootCertStore, RedisError> {
    let mut roots = RootCertStore::empty();
    for pem in &trust.roots {
        for certificate in certificates(pem, "the root certificates cannot be read as PEM")? {
            roots
                .add(certificate)
                .map_err(|error| refused("a root certificate cannot be used", &error))?;
        }
    }
    if trust.roots.is_empty() {
        // Files to read, or a system's keychain to ask.
        let found = match Handle::try_current() {
            Ok(runtime) => runtime.spawn_blocking(load_native_certs).await,
            Err(_no_runtime) => Ok(load_native_certs()),
        };
        // A machine may have roots that are too old to be understood: they make nobody trusted.
        roots.add_parsable_certificates(found.map_err(io::Error::other)?.certs);
        if roots.is_empty() {
            return Err(unusable(
                "this machine has no root certificates: install them, set SSL_CERT_FILE, or give your own",
            ));
        }
    }
    Ok(roots)
}

impl Identity {
    /// What is wrong with a key is not told: it may be the key.
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), RedisError> {
        let chain = certificates(&self.chain, "the client certificate cannot be read as PEM")?;
        let key = PrivateKeyDer::from_pem_slice(&self.key);
        let key = key.map_err(|_secret| {
            unusable("the client's private key cannot be read as PEM without a password")
        })?;
        Ok((chain, key))
    }
}

/// At least one certificate.
fn certificates(
    pem: &[u8],
    otherwise: &'static str,
) -> Result<Vec<CertificateDer<'static>>, RedisError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(unusable(otherwise)),
    }
}

fn refused(why: &'static str, error: &rustls::Error) -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, why, error.to_string()))
}
