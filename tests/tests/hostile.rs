//! Hundreds of thousands of requests that no honest client sends: none is answered by a panic, none changes a study that
//! others have created, and memory stays small.

use std::{
    env,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use asng_tests::{
    Controller,
    hostile::{Kept, is_fault},
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;

const CLIENTS: u64 = 8;
/// Requests of one client after which the studies that they have created are deleted.
const CLEARED_AFTER: u64 = 500;
/// A controller that has nothing to do takes a tenth of it.
const MOST_BYTES: u64 = 256 << 20;

/// `ASNG_HOSTILE_REQUESTS` requests, or enough for every change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_change_nothing() {
    let requests = env::var("ASNG_HOSTILE_REQUESTS");
    let requests: u64 = requests.map_or(30_000, |requests| requests.parse().expect("a number"));
    let directory = tempfile::tempdir().unwrap();
    // Not a line for every study that comes and goes.
    let log =
        "warn,asng_controller=info,asng_controller::studies=error,asng_controller::service=error";
    let controller = Arc::new(Controller::start_with(directory.path(), &["--log", log]));
    let kept = Arc::new(Kept::create(&controller).await);
    let before = kept.state(&controller).await;

    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (controller, kept) = (controller.clone(), kept.clone());
        clients.spawn(async move {
            let mut random = ChaCha8Rng::seed_from_u64(client);
            let mut channel = controller.channel();
            for i in 0..requests.div_ceil(CLIENTS) {
                let request = kept.request(&mut random);
                let status = request.send(&mut channel).await;
                assert!(
                    !is_fault(&status),
                    "request {i} of client {client}: {status}: {request:?}"
                );
                if i % CLEARED_AFTER == 0 {
                    kept.clear(&controller).await;
                }
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    assert_eq!(kept.state(&controller).await, before);

    let address = controller.address;
    tokio::task::spawn_blocking(move || break_http(address)).await.unwrap();
    assert_eq!(kept.state(&controller).await, before);
    let resident = controller.resident_bytes();
    assert!(resident < MOST_BYTES, "{resident} bytes are resident");
    let log = controller.log_with("");
    assert!(!log.contains("panicked"), "{log}");
}

/// Connections that speak no HTTP/2, or speak it wrongly.
fn break_http(address: SocketAddr) {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    for _ in 0..300 {
        let mut sent = match random.random_range(0..4) {
            0 => Vec::new(),
            1 => {
                b"POST /asng.v1.StudyService/GetStudy HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n"
                    .to_vec()
            }
            // The preface and empty settings.
            _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        };
        for _ in 0..random.random_range(0..20) {
            let mut payload = vec![0; random.random_range(0..200)];
            random.fill_bytes(&mut payload);
            let claimed = match random.random_range(0..10) {
                0 => 0xff_ffff,
                1 => 0,
                _ => payload.len() as u32,
            };
            sent.extend(&claimed.to_be_bytes()[1..]);
            sent.extend([
                random.random_range(0..12),
                random.random(),
                0,
                0,
                0,
                random.random_range(0..5),
            ]);
            sent.extend(payload);
        }
        let mut connection = TcpStream::connect(address).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // Either fails when the server has seen enough.
        let _ = connection.write_all(&sent).and_then(|()| connection.shutdown(Shutdown::Write));
        match connection.read_to_end(&mut Vec::new()) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("the connection stays open after {sent:?}")
            }
            _ => {}
        }
    }
}
