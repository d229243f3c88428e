//! The options of access control, and the check that nothing is open to other machines by accident.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::bail;
use tokio_rustls::rustls::ServerConfig;
use tracing::warn;

use crate::{
    access::{self, Tokens},
    files::Watched,
    tls::{self, Files},
};

/// The options of who may connect. Each program names them by a prefix of its own.
#[derive(Clone, Debug)]
pub struct Exposure {
    /// The prefix of the options' names: "" for --tls-cert and so on.
    pub prefix: &'static str,
    /// Of --tls-cert.
    pub tls_cert: Option<PathBuf>,
    /// Of --tls-key.
    pub tls_key: Option<PathBuf>,
    /// Of --tls-client-ca.
    pub tls_client_ca: Option<PathBuf>,
    /// Of --token-file.
    pub token_file: Option<PathBuf>,
    /// Of --insecure.
    pub insecure: bool,
}

impl Exposure {
    /// Reads the files, for a server that listens on `listen`. Refuses to serve other machines in plain text, or everybody, unless
    /// that is said to be meant.
    pub async fn read(
        self,
        listen: SocketAddr,
    ) -> anyhow::Result<(Option<Watched<ServerConfig>>, Option<Watched<Tokens>>)> {
        let Exposure { prefix, tls_cert, tls_key, tls_client_ca, token_file, insecure } = self;
        let tls = match (tls_cert, tls_key) {
            (Some(cert), Some(key)) => Some(Files { cert, key, client_ca: tls_client_ca }),
            (None, None) if tls_client_ca.is_none() => None,
            _ => bail!("TLS needs both --{prefix}tls-cert and --{prefix}tls-key"),
        };
        let open_to_all = match &tls {
            _ if listen.ip().to_canonical().is_loopback() => None,
            None => Some(format!(
                "would be in plain text. For TLS give --{prefix}tls-cert and --{prefix}tls-key, which \
                 `asng-controller certs --host NAME` creates"
            )),
            Some(Files { client_ca: None, .. }) if token_file.is_none() => Some(format!(
                "would give everyone full access. Give --{prefix}tls-client-ca, which `asng-controller \
                 certs --host NAME` creates, or --{prefix}token-file"
            )),
            Some(_) => None,
        };
        if let Some(danger) = open_to_all {
            if !insecure {
                bail!("serving other machines, on {listen}, {danger}; or give --{prefix}insecure");
            }
            warn!("insecure: serving other machines, on {listen}, {danger}");
        }
        let tls = match tls {
            Some(files) => Some(tls::read(files).await?),
            None => None,
        };
        let tokens = match token_file {
            Some(file) => Some(access::read(file).await?),
            None => None,
        };
        Ok((tls, tokens))
    }
}
