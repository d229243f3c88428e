//! Creates a private certificate authority and the certificates that it signs.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail, ensure};
use asng_controller::study::is_name;
use clap::Args;
use rand::Rng;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_DAYS: u32 = 3653;
/// The certificate of a client, when none is named.
const CLIENT: &str = "client";

/// An existing authority is reused, so that a client can be added later, or a certificate renewed.
#[derive(Args)]
pub(crate) struct Options {
    /// Directory to write the files to, created if it does not exist.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    out: PathBuf,
    /// Name or address by which clients reach the controller; repeatable [default: localhost, 127.0.0.1, ::1 and this
    /// machine's name].
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Name of a client to create a certificate for; repeatable [default: client].
    #[arg(long = "client", value_name = "NAME")]
    clients: Vec<String>,
    /// Days for which the certificates are valid; the authority is valid for ten years.
    #[arg(long, value_name = "N", default_value_t = 397)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Replace the certificates named by --host and --client if they exist.
    #[arg(long)]
    force: bool,
}

/// Creates the files that do not exist yet, and prints how to use them.
pub(crate) fn make(options: &Options) -> anyhow::Result<()> {
    let Options { out, hosts, clients, days, force } = options;
    let mut wanted = vec![("server", !hosts.is_empty())];
    wanted.extend(clients.iter().map(|name| (name.as_str(), true)));
    if clients.is_empty() {
        wanted.push((CLIENT, false));
    }
    for (i, (name, _)) in wanted.iter().enumerate() {
        ensure!(is_name(name), "{name:?} cannot be the name of a file: use a-z, 0-9, '-' and '.'");
        let taken = *name == "ca" || wanted[..i].iter().any(|(other, _)| other == name);
        ensure!(!taken, "{name:?} cannot be the name of a client: it is in use");
    }
    // What was not named stays as it is.
    wanted.retain(|(name, named)| *named || !out.join(format!("{name}.pem")).exists());
    for (name, _) in &wanted {
        let file = out.join(format!("{name}.pem"));
        ensure!(*force || !file.exists(), "{} exists; --force replaces it", file.display());
    }

    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let ca = authority(out)?;
    for (name, _) in &wanted {
        let mut certificate = if *name == "server" {
            let hosts = if hosts.is_empty() { default_hosts() } else { hosts.clone() };
            println!("server certificate for {}", hosts.join(", "));
            params(name, hosts, ExtendedKeyUsagePurpose::ServerAuth)?
        } else {
            params(name, vec![], ExtendedKeyUsagePurpose::ClientAuth)?
        };
        certificate.not_after = (SystemTime::now() + *days * DAY).into();
        let key = KeyPair::generate()?;
        write(out, &format!("{name}-key.pem"), 0o600, &key.serialize_pem())?;
        write(out, &format!("{name}.pem"), 0o644, &certificate.signed_by(&key, &ca)?.pem())?;
    }
    let host = hosts.first().map_or("localhost", String::as_str);
    let client = clients.first().map_or(CLIENT, String::as_str);
    print_usage(&out.display().to_string(), host, client);
    Ok(())
}

/// Reads the authority of the directory, or makes it.
fn authority(out: &Path) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let (cert, key) = (out.join("ca.pem"), out.join("ca-key.pem"));
    match (cert.exists(), key.exists()) {
        (true, true) => {
            let read =
                |file: &Path| fs::read_to_string(file).with_context(|| file.display().to_string());
            let pair =
                KeyPair::from_pem(&read(&key)?).with_context(|| key.display().to_string())?;
            Issuer::from_ca_cert_pem(&read(&cert)?, pair)
                .with_context(|| cert.display().to_string())
        }
        (false, false) => {
            // Whoever mixes up two of them shall be told so, and not of a bad signature.
            let name = format!("ASNG-NAS private CA {:08x}", rand::rng().next_u32());
            let mut ca = params(&name, vec![], ExtendedKeyUsagePurpose::Any)?;
            ca.extended_key_usages.clear();
            ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            ca.not_after = (SystemTime::now() + CA_DAYS * DAY).into();
            let pair = KeyPair::generate()?;
            write(out, "ca-key.pem", 0o600, &pair.serialize_pem())?;
            write(out, "ca.pem", 0o644, &ca.self_signed(&pair)?.pem())?;
            Ok(Issuer::new(ca, pair))
        }
        _ => bail!(
            "only one of {} and {} exists: restore the other, or move it away",
            cert.display(),
            key.display()
        ),
    }
}

fn params(
    name: &str,
    hosts: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(hosts).context("--host")?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    // Clocks differ.
    params.not_before = (SystemTime::now() - DAY).into();
    Ok(params)
}

fn default_hosts() -> Vec<String> {
    let mut hosts = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
    let machine = gethostname::gethostname().to_string_lossy().into_owned();
    if !hosts.contains(&machine) && is_name(&machine) {
        hosts.push(machine);
    }
    hosts
}

/// Writes a file whole or not at all.
fn write(out: &Path, name: &str, mode: u32, text: &str) -> anyhow::Result<()> {
    let (file, part) = (out.join(name), out.join(format!("{name}.part")));
    let write = || {
        // Left from a run that was cut short, perhaps with another mode.
        let _ = fs::remove_file(&part);
        let mut new = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&part, &file)
    };
    write().with_context(|| file.display().to_string())?;
    println!("wrote {}", file.display());
    Ok(())
}

fn print_usage(out: &str, host: &str, client: &str) {
    let host = if host.contains(':') { format!("[{host}]") } else { host.into() };
    let connect = format!(
        "--controller https://{host}:50051 --tls-ca {out}/ca.pem \\\n    \
         --tls-cert {out}/{client}.pem --tls-key {out}/{client}-key.pem"
    );
    println!(
        "
Start the controller:
  asng-controller --listen 0.0.0.0:50051 --tls-cert {out}/server.pem \\
    --tls-key {out}/server-key.pem --tls-client-ca {out}/ca.pem
Start a trainer, which needs ca.pem, {client}.pem and {client}-key.pem:
  asng-trainer serve {connect}
Use the command line, with the same files:
  asngctl {connect} study list
Keep ca-key.pem secret: anyone who has it can create client certificates."
    );
}
