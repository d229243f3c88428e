//! Accepts connections, in plain text or under TLS, and no more of them than allowed.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::either::Either;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::debug;

use crate::condition::Condition;

/// How long a client may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause when the system has no more files for connections.
const PAUSE: Duration = Duration::from_millis(100);

/// The answer to a client that sends HTTP to a port of gRPC.
pub(crate) const NOT_HTTP: &str = "This port answers gRPC, not HTTP. Pages and metrics are on the port of --http, by default 50052 of a \
                                   controller and 50054 of a trainer.";

/// A connection that was accepted.
pub struct Connection {
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    info: TcpConnectInfo,
    _place: OwnedSemaphorePermit,
}

/// The protocol of a port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// gRPC, which is HTTP/2. In plain text, requests in HTTP/1 are answered with a sentence.
    Grpc,
    /// HTTP.
    Http,
}

/// Accepts connections until the stream is dropped; each under `tls` as it is then, if any.
pub(crate) fn accept(
    listener: TcpListener,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    max_connections: usize,
    protocol: Protocol,
) -> ReceiverStream<io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
    let (ready, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut failing = Condition::new("cannot accept connections");
        let mut full = Condition::new("further connections are closed");
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            failing.record(accepted.as_ref());
            let Ok((stream, _)) = accepted else {
                sleep(PAUSE).await;
                continue;
            };
            let place = places.clone().try_acquire_owned();
            let limit = format_args!("{max_connections} are open, which is the limit");
            full.record(place.as_ref().map_err(|_| limit));
            let Ok(place) = place else { continue };
            let tls = tls.as_ref().map(|tls| TlsAcceptor::from(tls.borrow().clone()));
            let ready = ready.clone();
            tokio::spawn(async move {
                let info = stream.connect_info();
                match open(stream, tls, protocol).await {
                    Ok(stream) => {
                        // An error means that nobody serves connections any more.
                        let _ = ready.send(Ok(Connection { stream, info, _place: place })).await;
                    }
                    Err(error) => debug!(peer = ?info.remote_addr, %error, "no connection"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

async fn open(
    mut stream: TcpStream,
    tls: Option<TlsAcceptor>,
    protocol: Protocol,
) -> io::Result<Either<TcpStream, Box<TlsStream<TcpStream>>>> {
    // Replies leave at once.
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        if protocol == Protocol::Grpc {
            refuse_http1(&mut stream).await?;
        }
        return Ok(Either::Left(stream));
    };
    let stream = timeout(HANDSHAKE, tls.accept(stream)).await??;
    Ok(Either::Right(Box::new(stream)))
}

/// Answers a browser, or another client of HTTP/1, with a sentence. Errors if the client is one.
async fn refuse_http1(stream: &mut TcpStream) -> io::Result<()> {
    let mut begin = [0; 3];
    let read = timeout(HANDSHAKE, stream.peek(&mut begin)).await??;
    let begin = &begin[..read];
    let is_http1 = !begin.is_empty() && begin.iter().all(u8::is_ascii_uppercase);
    // HTTP/2 begins with "PRI".
    if !is_http1 || b"PRI".starts_with(begin) {
        return Ok(());
    }
    // Closing with unread input could discard the answer on its way.
    let _ = timeout(HANDSHAKE, stream.read(&mut [0; 8192])).await??;
    let text = format!("{NOT_HTTP}\n");
    let answer = format!(
        "HTTP/1.1 415 Unsupported Media Type\r\ncontent-type: text/plain; charset=utf-8\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    Err(io::Error::other("a request in HTTP/1"))
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
