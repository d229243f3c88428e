//! Accepts connections, in plain text or under TLS, and no more of them than allowed.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
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

/// A connection that was accepted.
pub struct Connection {
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    info: TcpConnectInfo,
    _place: OwnedSemaphorePermit,
}

/// Accepts connections until the stream is dropped; each under `tls` as it is then, if any.
pub(crate) fn accept(
    listener: TcpListener,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    max_connections: usize,
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
                match open(stream, tls).await {
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
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
) -> io::Result<Either<TcpStream, Box<TlsStream<TcpStream>>>> {
    // Replies leave at once.
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Either::Left(stream)) };
    let stream = timeout(HANDSHAKE, tls.accept(stream)).await??;
    Ok(Either::Right(Box::new(stream)))
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
