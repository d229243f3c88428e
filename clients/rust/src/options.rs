//! The options for the connection to controllers, and their meaning.

use std::{
    env, fs,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use http::Uri;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::{Connection, token::Token};

pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Peers that do not answer a ping in this time are gone.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// The port on which a controller serves gRPC by default.
pub const CONTROLLER_PORT: u16 = 50051;
/// The port on which a trainer serves gRPC by default.
pub const TRAINER_PORT: u16 = 50053;

/// How controllers are reached: for clap's `flatten`.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Connection to the controller")]
pub struct Options {
    /// Address of the controller: HOST, HOST:PORT or a URL, https:// for TLS; several, separated by commas, if several
    /// controllers share a database
    #[arg(long, global = true, env = "ASNG_CONTROLLER", value_name = "ADDRESS")]
    #[arg(value_delimiter = ',')]
    #[arg(default_value = "http://127.0.0.1:50051")]
    pub controller: Vec<String>,
    /// PEM file of the certificate authorities that are trusted for the controller [default: the system's]
    #[arg(long, global = true, env = "ASNG_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// PEM file of this client's certificate, for controllers that require one; needs --tls-key
    #[arg(long, global = true, env = "ASNG_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key
    #[arg(long, global = true, env = "ASNG_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// File whose first line is the token of this client; read again when it changes. ASNG_TOKEN may hold the token itself
    /// instead
    #[arg(long, global = true, env = "ASNG_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Allow to send the token unencrypted: over http:// to another machine
    #[arg(long, global = true, env = "ASNG_INSECURE")]
    pub insecure: bool,
}

impl Options {
    /// The connection that is meant, made when it is first used. Reads the files. Must be called within a tokio runtime.
    pub fn connect(&self) -> anyhow::Result<Connection> {
        self.connect_as(env::var("ASNG_TOKEN").ok().filter(|token| !token.is_empty()))
    }

    /// The same with `token` in place of what the environment says. A token file goes before it.
    fn connect_as(&self, token: Option<String>) -> anyhow::Result<Connection> {
        let token = match (&self.token_file, token) {
            (Some(file), _) => Some(Token::of_file(file)?),
            (None, Some(token)) => Some(Token::new(&token).context("ASNG_TOKEN")?),
            (None, None) => None,
        };
        let rules = Rules { tls: self.tls()?, secret: token.is_some(), insecure: self.insecure };
        let mut endpoints = Vec::new();
        for address in &self.controller {
            endpoints.push(rules.endpoint(address)?);
        }
        ensure!(!endpoints.is_empty(), "name a controller with --controller");
        Ok(Connection::new(endpoints, rules, token))
    }

    /// Returns whether there are TLS options.
    pub fn has_tls(&self) -> bool {
        self.tls_ca.is_some() || self.tls_cert.is_some()
    }

    /// The TLS options, if there are any.
    fn tls(&self) -> anyhow::Result<Option<ClientTlsConfig>> {
        let identity = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => bail!("--tls-cert needs --tls-key, the certificate's private key"),
            (None, Some(_)) => bail!("--tls-key needs --tls-cert, the certificate of that key"),
        };
        if self.tls_ca.is_none() && identity.is_none() {
            return Ok(None);
        }
        let mut tls = ClientTlsConfig::new();
        tls = match &self.tls_ca {
            Some(file) => tls.ca_certificate(Certificate::from_pem(certificates(file)?)),
            None => tls.with_native_roots(),
        };
        if let Some((certificate, key)) = identity {
            let (certificate, pem) = (certificates(certificate)?, read(key)?);
            PrivateKeyDer::from_pem_slice(&pem)
                .with_context(|| format!("{} holds no private key in PEM", key.display()))?;
            tls = tls.identity(Identity::from_pem(certificate, pem));
        }
        Ok(Some(tls))
    }
}

/// Reads a PEM file that must hold certificates.
pub(crate) fn certificates(file: &Path) -> anyhow::Result<Vec<u8>> {
    let pem = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.with_context(|| format!("{} is no PEM file", file.display()))?;
    ensure!(!found.is_empty(), "{} holds no certificate in PEM", file.display());
    Ok(pem)
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The requirements for every address, also one that a controller names.
pub(crate) struct Rules {
    /// Set when there are TLS options.
    tls: Option<ClientTlsConfig>,
    /// True if a token is sent with every call.
    secret: bool,
    insecure: bool,
}

impl Rules {
    /// Checks the address of a controller, and says how to connect to it.
    pub(crate) fn endpoint(&self, address: &str) -> anyhow::Result<Endpoint> {
        let url = url(address, CONTROLLER_PORT, self.tls.is_some())?;
        let uri: Uri = url.parse()?;
        let endpoint = Endpoint::from(uri.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        if url.starts_with("https://") {
            let tls = self.tls.clone();
            let tls = tls.unwrap_or_else(|| ClientTlsConfig::new().with_native_roots());
            return endpoint.tls_config(tls.timeout(CONNECT_TIMEOUT)).with_context(|| {
                format!(
                    "cannot set up TLS for {url}; --tls-ca names the authority that signed its \
                     certificate"
                )
            });
        }
        ensure!(
            self.tls.is_none(),
            "TLS options are given, but {url} does not use TLS: write https://"
        );
        ensure!(
            !self.secret || self.insecure || is_loopback(uri.host().unwrap_or_default()),
            "a token would be sent to {url} unencrypted; use https://, or give \
             --insecure if nobody else is on the way"
        );
        Ok(endpoint)
    }
}

/// Returns the URL that an address means: `[http://|https://]HOST[:PORT]`, where HOST is a name, an IPv4 address or an IPv6
/// address, in brackets if a port follows. Without a scheme, it is https:// if `tls` and http:// otherwise. The port is
/// `default_port` unless it is given, also with a scheme.
pub fn url(address: &str, default_port: u16, tls: bool) -> anyhow::Result<String> {
    let address = address.trim();
    // The address may hold a password: it is not shown.
    ensure!(
        !address.contains('@'),
        "the address of a server must not have a user name or password; give a token with --token-file FILE"
    );
    let scheme = if tls { "https" } else { "http" };
    let url = match address.parse::<Ipv6Addr>() {
        Ok(ip) => format!("{scheme}://[{ip}]"),
        Err(_) if address.contains("://") => address.into(),
        Err(_) => format!("{scheme}://{address}"),
    };
    normalized(&url, default_port).with_context(|| {
        format!(
            "{address:?} is not an address such as localhost:{default_port}, gpu-box or \
             https://controller.example.org:{default_port}"
        )
    })
}

/// Returns a URL of scheme, host and port, with `default_port` in place of a missing one.
fn normalized(url: &str, default_port: u16) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?;
    let host = uri.host().filter(|host| !host.is_empty())?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return None;
    }
    let port = match uri.authority()?.as_str().strip_prefix(host)? {
        "" => default_port,
        port => port.strip_prefix(':')?.parse().ok().filter(|&port| port > 0)?,
    };
    Some(format!("{scheme}://{host}:{port}"))
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parsed(arguments: &[&str]) -> Options {
        Cli::parse_from(["cli"].iter().chain(arguments)).options
    }

    /// The connection's addresses, or why there is none.
    fn connect(arguments: &[&str], token: Option<&str>) -> Result<String, String> {
        let connection = parsed(arguments).connect_as(token.map(Into::into));
        connection.map(|connection| connection.url()).map_err(|error| format!("{error:#}"))
    }

    #[tokio::test]
    async fn an_address_needs_no_scheme_and_no_port() {
        for (address, expected) in [
            ("localhost:1", "http://localhost:1"),
            ("gpu-box", "http://gpu-box:50051"),
            ("10.0.0.1:50061", "http://10.0.0.1:50061"),
            ("[::1]:2", "http://[::1]:2"),
            ("[::1]", "http://[::1]:50051"),
            ("::1", "http://[::1]:50051"),
            (" a:1, http://b/,HTTPS://c ", "http://a:1,http://b:50051,https://c:50051"),
        ] {
            assert_eq!(connect(&["--controller", address], None).unwrap(), expected, "{address}");
        }
        assert_eq!(url("gpu-box", TRAINER_PORT, true).unwrap(), "https://gpu-box:50053");
        assert_eq!(url("http://gpu-box", TRAINER_PORT, true).unwrap(), "http://gpu-box:50053");
        assert_eq!(url("http://gpu-box:7", TRAINER_PORT, true).unwrap(), "http://gpu-box:7");
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused_with_the_right_form() {
        for address in [
            "",
            "unix:a",
            "ftp://a",
            "http://",
            "http://a b",
            "http://a/x",
            "a/x",
            "a?b",
            "a,",
            ":1",
            "a:",
            "a:b",
            "a:0",
            "a:70000",
            "a:1:2",
            "1:2:3",
        ] {
            let error = connect(&["--controller", address], None).unwrap_err();
            assert!(
                error.contains("is not an address such as localhost:50051"),
                "{address}: {error}"
            );
        }
        for address in ["http://me:secret@a:1", "me:secret@a"] {
            let error = connect(&["--controller", address], None).unwrap_err();
            assert!(error.contains("--token-file") && !error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn half_a_client_certificate_is_an_error() {
        let error = connect(&["--controller=https://a", "--tls-cert=c"], None).unwrap_err();
        assert!(error.contains("--tls-cert needs --tls-key"), "{error}");
        let error = connect(&["--controller=https://a", "--tls-key=k"], None).unwrap_err();
        assert!(error.contains("--tls-key needs --tls-cert"), "{error}");
    }

    #[tokio::test]
    async fn tls_options_need_https_and_files_that_hold_what_they_should() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        let option = format!("--tls-ca={}", file.display());
        let error = connect(&[&option, "--controller=https://a"], None).unwrap_err();
        assert!(error.contains("cannot read"), "{error}");
        fs::write(&file, "nonsense").unwrap();
        let error = connect(&[&option, "--controller=https://a"], None).unwrap_err();
        assert!(error.contains("holds no certificate in PEM"), "{error}");
        let authority = rcgen::generate_simple_self_signed(["a".into()]).unwrap();
        fs::write(&file, authority.cert.pem()).unwrap();
        assert_eq!(connect(&[&option, "--controller=https://a"], None).unwrap(), "https://a:50051");
        assert_eq!(connect(&[&option, "--controller=a"], None).unwrap(), "https://a:50051");
        let error = connect(&[&option, "--controller=http://a"], None).unwrap_err();
        assert!(error.contains("http://a:50051 does not use TLS: write https://"), "{error}");
    }

    #[tokio::test]
    async fn a_token_does_not_cross_a_network_in_the_clear() {
        let away = "--controller=http://10.1.2.3:50051";
        let error = connect(&[away], Some("secret")).unwrap_err();
        assert!(error.contains("--insecure") && !error.contains("secret"), "{error}");
        assert!(connect(&[away], None).is_ok());
        assert!(connect(&[away, "--insecure"], Some("secret")).is_ok());
        for host in ["localhost", "127.1.2.3", "[::1]"] {
            let url = format!("--controller=http://{host}:1");
            assert!(connect(&[&url], Some("secret")).is_ok(), "{host}");
        }
    }
}
