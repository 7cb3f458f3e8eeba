//! A certificate authority of one's own: a root, and certificates by it for servers and for clients.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

#[derive(Debug)]
/// Its files are removed on drop: it has to outlive the servers that were started with them.
pub struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its private key, both PEM.
pub struct Certificate {
    pub chain: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // Each has a name of its own: an unknown issuer is another fault than a known one's wrong signature.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("root {}", NEXT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("root.pem"), root.pem()).unwrap();
        Self { root, folder }
    }

    /// The root's own certificate.
    pub fn root(&self) -> String {
        self.root.pem()
    }

    /// The file that has it.
    pub fn root_file(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// Signs a certificate for these names and addresses.
    pub fn certify(&self, names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.root).unwrap();
        Certificate {
            chain: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// The settings of a Redis server, or a sentinel, that shows a certificate for these names, and asks clients for none.
    pub fn settings(&self, names: &[&str]) -> Vec<[String; 2]> {
        let certificate = self.certify(names);
        let file = |name: String, text: &str| {
            let path = self.folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let name = names.join("-");
        [
            (
                "tls-cert-file",
                file(format!("{name}.pem"), &certificate.chain),
            ),
            (
                "tls-key-file",
                file(format!("{name}.key"), &certificate.key),
            ),
            ("tls-ca-cert-file", self.root_file().display().to_string()),
            ("tls-auth-clients", "no".to_owned()),
        ]
        .map(|(name, value)| [name.to_owned(), value])
        .to_vec()
    }

    /// The same as options of a program that keeps nothing on disk, with more behind them.
    pub fn options(&self, names: &[&str], more: &[&str]) -> Vec<String> {
        let settings = self.settings(names).into_iter();
        let settings = settings.flat_map(|[name, value]| [format!("--{name}"), value]);
        let more = ["--save", ""]
            .iter()
            .chain(more)
            .map(|part| (*part).to_owned());
        settings.chain(more).collect()
    }
}
