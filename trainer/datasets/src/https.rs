//! Downloads from where a data set's authors have put it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ureq::Agent;

use crate::fetch;

/// A machine that may not reach the address should learn so in seconds; there are other sources.
const TO_CONNECT: Duration = Duration::from_secs(5);
const TO_ANSWER: Duration = Duration::from_secs(20);
const TO_DOWNLOAD: Duration = Duration::from_secs(3600);

/// Writes what `url` gives, up to `limit` bytes, to `file`, and shows how much of it has arrived.
pub(crate) fn download(url: &str, limit: u64, file: &Path) -> Result<()> {
    let agent: Agent = Agent::config_builder()
        .timeout_resolve(Some(TO_CONNECT))
        .timeout_connect(Some(TO_CONNECT))
        .timeout_recv_response(Some(TO_ANSWER))
        .timeout_recv_body(Some(TO_DOWNLOAD))
        .build()
        .into();
    let body = agent.get(url).call().with_context(|| format!("cannot get {url}"))?.into_body();
    let total = body.content_length();
    let bar = fetch::bar("fetching", total.unwrap_or(limit));
    if let Some(total) = total {
        eprintln!("fetching {url}: {:.1} MB", total as f64 / 1e6);
    }
    // One byte more than there may be.
    let mut content = bar.wrap_read(io::Read::take(body.into_reader(), limit + 1));
    let arrived = io::copy(&mut content, &mut File::create(file)?)
        .with_context(|| format!("{url} broke off"))?;
    bar.finish_and_clear();
    ensure!(arrived <= limit, "{url} gives more than {limit} bytes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::{fs, thread};

    use super::*;

    /// Downloads at most 5 bytes from a server that says `answer` and closes the connection.
    fn download_from(answer: &'static str) -> Result<String> {
        let server = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/file", server.local_addr()?);
        let served = thread::spawn(move || {
            let (mut client, _) = server.accept().unwrap();
            let mut request = [0; 1024];
            let _ = client.read(&mut request).unwrap();
            client.write_all(answer.as_bytes()).unwrap();
        });
        let folder = tempfile::tempdir()?;
        let result = download(&url, 5, &folder.path().join("file"));
        served.join().unwrap();
        result.and_then(|()| Ok(fs::read_to_string(folder.path().join("file"))?))
    }

    #[test]
    fn only_whole_answers_of_a_bearable_size_pass() {
        let whole = download_from("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole");
        assert_eq!(whole.unwrap(), "whole");
        let error = download_from("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nlarger");
        assert!(error.unwrap_err().to_string().ends_with("gives more than 5 bytes"));
        let error = download_from("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwho");
        assert!(error.unwrap_err().to_string().ends_with("broke off"));
        let error = download_from("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        assert!(format!("{:#}", error.unwrap_err()).contains("404"));
    }
}
