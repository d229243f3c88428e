//! A network that does its worst between a client and a server, over and over in the same way.

use std::{
    array, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use asng_proto::v1::search_service_client::SearchServiceClient;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::transport::Channel;

/// Bytes that pass in one direction before a connection ends, at most: a few dozen reports.
const MOST_BYTES: usize = 8000;
/// How long a connection outlives its end for the client, at most.
const AFTERLIFE: Duration = Duration::from_millis(100);

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed as soon as it is made.
    Refused,
    /// The connection is cut on both sides, most likely in the middle of a message.
    Cut,
    /// Nothing passes for a while, then it is cut.
    Stalled,
    /// The connection is cut on the client's side alone: the server continues with what it has received, and its replies are lost.
    Abandoned,
    /// The same, and all that the client has sent on it is sent again on another connection.
    Replayed,
}

/// Every one, in the order of their numbers.
pub const FAULTS: [Fault; 5] =
    [Fault::Refused, Fault::Cut, Fault::Stalled, Fault::Abandoned, Fault::Replayed];

/// A TCP proxy all of whose connections end in a `Fault`, one after the other. After how many bytes in which direction,
/// and how slow they are until then, follows from a seed and the number of the connection. Gone when dropped.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    counts: Arc<[AtomicUsize; FAULTS.len()]>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts one before `server`.
    pub async fn start(server: SocketAddr, seed: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts: Arc<[_; _]> = Arc::new(array::from_fn(|_| AtomicUsize::new(0)));
        let counting = counts.clone();
        let task = tokio::spawn(async move {
            for connection in 0.. {
                let (client, _) = listener.accept().await.unwrap();
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(connection as u64);
                // In turn, so that none is missing in a short test.
                let fault = connection % FAULTS.len();
                counting[fault].fetch_add(1, Ordering::Relaxed);
                // An error means that one of the two was faster to hang up.
                tokio::spawn(mistreat(client, server, FAULTS[fault], random));
            }
        });
        Proxy { address, counts, task }
    }

    /// A client of SearchService with a connection of its own through it, made again whenever it broke.
    pub fn search(&self) -> SearchServiceClient<Channel> {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        SearchServiceClient::new(endpoint.connect_lazy())
    }

    /// How many connections have come to this end, or are about to.
    pub fn count(&self, fault: Fault) -> usize {
        self.counts[fault as usize].load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn mistreat(
    client: TcpStream,
    server: SocketAddr,
    fault: Fault,
    mut random: ChaCha8Rng,
) -> io::Result<()> {
    if fault == Fault::Refused {
        return Ok(());
    }
    let bytes = random.random_range(1..MOST_BYTES);
    let (up, down) = if random.random() { (bytes, usize::MAX) } else { (usize::MAX, bytes) };
    let delay = Duration::from_micros([0, 0, 2000][random.random_range(0..3)]);
    let mut other = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    other.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = other.split();
    let mut sent = Vec::new();
    tokio::select! {
        passed = pass(&mut from_client, &mut to_server, up, delay, Some(&mut sent)) => passed?,
        passed = pass(&mut from_server, &mut to_client, down, delay, None) => passed?,
    }
    let afterlife = AFTERLIFE.mul_f64(random.random());
    match fault {
        Fault::Refused | Fault::Cut => {}
        Fault::Stalled => sleep(afterlife).await,
        Fault::Abandoned => {
            drop((from_client, to_client));
            swallow(&mut from_server, afterlife).await;
        }
        Fault::Replayed => {
            drop((from_client, to_client));
            let mut again = TcpStream::connect(server).await?;
            again.write_all(&sent).await?;
            tokio::join!(swallow(&mut from_server, afterlife), swallow(&mut again, afterlife));
        }
    }
    Ok(())
}

/// Passes up to `limit` bytes on, each read after `delay`, and keeps a copy in `sent`.
async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    limit: usize,
    delay: Duration,
    mut sent: Option<&mut Vec<u8>>,
) -> io::Result<()> {
    let mut left = limit;
    let mut buffer = [0; 2048];
    while left > 0 {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let chunk = &buffer[..read.min(left)];
        to.write_all(chunk).await?;
        if let Some(sent) = &mut sent {
            sent.extend(chunk);
        }
        left -= chunk.len();
    }
    Ok(())
}

/// Reads for a while what nobody will see.
async fn swallow(from: &mut (impl AsyncRead + Unpin), time: Duration) {
    // An error, or the time's end: either way it is over.
    let _ = timeout(time, tokio::io::copy(from, &mut tokio::io::sink())).await;
}
