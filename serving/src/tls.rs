//! TLS: from PEM files to what rustls serves with, saying what is wrong with which file.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;
use tokio_rustls::rustls::{
    Error, InconsistentKeys, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tracing::warn;
use x509_parser::{parse_x509_certificate, prelude::Validity};

use crate::files::{Fault, Watched};

/// Days before the end of a certificate from which on the log warns.
const WARN_DAYS: i64 = 30;
const DAY_SECS: i64 = 24 * 60 * 60;

/// The PEM files of a server.
#[derive(Clone, Debug)]
pub struct Files {
    /// Its certificate, and after it those between it and a root.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// The roots of the clients' certificates. When it is there, a client has to have one: mutual TLS.
    pub client_ca: Option<PathBuf>,
}

/// Reads the files; connections that are accepted after they have changed are under the new ones.
pub async fn read(files: Files) -> Result<Watched<ServerConfig>, Fault> {
    let mut paths = vec![files.cert.clone(), files.key.clone()];
    paths.extend(files.client_ca.clone());
    Watched::read(paths, Box::new(move |contents| server_config(&files, contents))).await
}

/// `contents` are those of the certificate, the key and the client CA, if any.
fn server_config(files: &Files, contents: &[Vec<u8>]) -> Result<ServerConfig, Fault> {
    let provider = Arc::new(ring::default_provider());
    let unusable = |file: &Path| {
        let file = file.to_path_buf();
        move |error: Error| Fault::new(&file, format!("cannot be used: {error}"))
    };
    let certified = certified_key(files, &contents[0], &contents[1], &provider)?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable(&files.cert))?;
    let builder = match (&files.client_ca, contents.get(2)) {
        (Some(file), Some(content)) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file, content)? {
                roots.add(certificate).map_err(unusable(file))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            let verifier = verifier
                .build()
                .map_err(|error| Fault::new(file, format!("cannot be used: {error}")))?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The same certificate, now and later, for HTTP: browsers are not asked for one of theirs.
pub(crate) fn for_browsers(
    mut tls: watch::Receiver<Arc<ServerConfig>>,
) -> watch::Receiver<Arc<ServerConfig>> {
    let (sender, receiver) = watch::channel(Arc::new(browser_config(&tls.borrow_and_update())));
    tokio::spawn(async move {
        while tls.changed().await.is_ok() {
            sender.send_replace(Arc::new(browser_config(&tls.borrow_and_update())));
        }
    });
    receiver
}

fn browser_config(config: &ServerConfig) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(config.crypto_provider().clone());
    // Unwrap safety: these versions were good for `config`, with the same provider.
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let mut browsers = builder.with_cert_resolver(config.cert_resolver.clone());
    browsers.alpn_protocols = vec![b"http/1.1".to_vec()];
    browsers
}

fn certified_key(
    files: &Files,
    cert: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Fault> {
    let certificates = certificates(&files.cert, cert)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
        pem::Error::NoItemsFound => Fault::new(&files.key, "holds no private key in PEM form"),
        error => Fault::new(&files.key, format!("is not PEM: {error}")),
    })?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| Fault::new(&files.key, format!("holds no usable private key: {error}")))?;
    let certified = CertifiedKey::new(certificates, key);
    if let Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = certified.keys_match() {
        let fault = format!("is not the key of the certificate in {}", files.cert.display());
        return Err(Fault::new(&files.key, fault));
    }
    Ok(certified)
}

/// The certificates of a file, at least one. Warns of those that have ended or soon will.
fn certificates(file: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(content)
        .collect::<Result<_, _>>()
        .map_err(|error| Fault::new(file, format!("is not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(Fault::new(file, "holds no certificate in PEM form"));
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for certificate in &certificates {
        let (_, parsed) = parse_x509_certificate(certificate)
            .map_err(|error| Fault::new(file, format!("holds no X.509 certificate: {error}")))?;
        if let Some(warning) = warning(parsed.validity(), since.as_secs() as i64) {
            warn!(file = %file.display(), "{warning}");
        }
    }
    Ok(certificates)
}

/// Returns a warning about a certificate's validity at `now`, in seconds since 1970.
fn warning(validity: &Validity, now: i64) -> Option<String> {
    let left = validity.not_after.timestamp() - now;
    let end = validity.not_after;
    if left < 0 {
        Some(format!("the certificate has expired, on {end}: clients will refuse it"))
    } else if left < WARN_DAYS * DAY_SECS {
        Some(format!("the certificate expires in {} days, on {end}", left / DAY_SECS))
    } else if validity.not_before.timestamp() > now {
        Some(format!("the certificate is not valid before {}", validity.not_before))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{Certificate, CertificateParams, KeyPair};
    use x509_parser::time::ASN1Time;

    use super::*;

    fn certificate(key: &KeyPair) -> Certificate {
        CertificateParams::new(["localhost".to_string()]).unwrap().self_signed(key).unwrap()
    }

    #[test]
    fn a_faulty_file_is_named_with_its_fault() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let (cert, pem) = (certificate(&key).pem(), key.serialize_pem());
        let files = Files {
            cert: "server.pem".into(),
            key: "server-key.pem".into(),
            client_ca: Some("ca.pem".into()),
        };
        let config = |cert: &str, key: &str, ca: &str| {
            let contents = [cert, key, ca].map(|text| text.as_bytes().to_vec());
            server_config(&files, &contents).map_err(|fault| fault.to_string())
        };
        config(&cert, &pem, &cert).unwrap();
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (cert, key, ca, expected) in [
            ("", &*pem, &*cert, "server.pem: holds no certificate in PEM form"),
            (&pem, &pem, &cert, "server.pem: holds no certificate in PEM form"),
            (nonsense, &pem, &cert, "server.pem: holds no X.509 certificate"),
            (&cert, &cert, &cert, "server-key.pem: holds no private key in PEM form"),
            (
                &cert,
                &other.serialize_pem(),
                &cert,
                "server-key.pem: is not the key of the certificate in server.pem",
            ),
            (&cert, &pem, "", "ca.pem: holds no certificate in PEM form"),
        ] {
            let fault = config(cert, key, ca).unwrap_err();
            assert!(fault.starts_with(expected), "{fault}");
        }
    }

    #[test]
    fn the_log_warns_of_the_end_of_a_certificate() {
        let time = |secs| ASN1Time::from_timestamp(secs).unwrap();
        let validity = Validity { not_before: time(0), not_after: time(100 * DAY_SECS) };
        let said = |day: i64| warning(&validity, day * DAY_SECS);
        assert_eq!(said(1), None);
        assert!(said(90).unwrap().starts_with("the certificate expires in 10 days, on "));
        assert!(said(101).unwrap().starts_with("the certificate has expired, on "));
        assert!(said(-1).unwrap().starts_with("the certificate is not valid before "));
    }
}
