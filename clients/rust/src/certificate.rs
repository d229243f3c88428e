//! Until when a controller's certificate is valid.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use http::Uri;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};
use x509_parser::parse_x509_certificate;

use crate::{
    Options,
    explain::tls_explained,
    options::{CONNECT_TIMEOUT, certificates},
};

impl Options {
    /// Shakes hands with the controller at `url`, an https:// one, and returns when its certificate ends. An error says
    /// why a call would not trust it, and what to do.
    pub async fn certificate_end(&self, url: &str) -> anyhow::Result<SystemTime> {
        let mut roots = RootCertStore::empty();
        match &self.tls_ca {
            Some(file) => {
                for authority in CertificateDer::pem_slice_iter(&certificates(file)?) {
                    roots.add(authority?)?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        // A client certificate is not wanted before this side has seen the controller's.
        let mut config = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];

        let uri: Uri = url.trim().parse()?;
        let host = uri.host().context("no host in the URL")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let handshake = async {
            let stream = TcpStream::connect((&*host, port)).await?;
            let name = ServerName::try_from(host.clone())?;
            let connector = TlsConnector::from(Arc::new(config));
            let stream = connector.connect(name, stream).await.map_err(tls_explained)?;
            let chain = stream.get_ref().1.peer_certificates();
            let first = chain.and_then(<[_]>::first).context("it has shown no certificate")?;
            let (_, certificate) = parse_x509_certificate(first)?;
            let end = certificate.validity().not_after.timestamp();
            Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(end.try_into()?))
        };
        timeout(CONNECT_TIMEOUT, handshake).await.context("no answer to the TLS handshake")?
    }
}
