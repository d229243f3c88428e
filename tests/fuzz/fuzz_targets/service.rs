//! Any bytes, sent as a message to any method of a controller in this process. It must not panic, and no answer may tell of
//! a fault of the controller.
//!
//! With a nightly compiler and `cargo install cargo-fuzz`, in the directory `tests`:
//!
//! ```sh
//! cargo +nightly fuzz run service
//! ```

#![no_main]

use std::{sync::LazyLock, time::Duration};

use asng_controller::{Config, store::Location, studies};
use asng_serving::limits::Limits;
use asng_tests::hostile::{METHODS, Request, is_fault};
use libfuzzer_sys::fuzz_target;
use tokio::{net::TcpListener, runtime::Runtime};
use tonic::transport::Channel;

/// A runtime that serves a controller, and a connection to it.
static CONTROLLER: LazyLock<(Runtime, Channel)> = LazyLock::new(|| {
    let runtime = Runtime::new().unwrap();
    let channel = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let config = Config {
            location: Location::Directory(tempfile::tempdir().unwrap().keep()),
            studies: studies::Limits::default(),
            serving: asng_serving::Config {
                tls: None,
                tokens: None,
                limits: Limits {
                    max_message_size: 16 << 20,
                    max_connections: 16,
                    max_streams: 100,
                    request_timeout: Duration::from_secs(60),
                    rate_limit: None,
                },
                grace: Duration::from_secs(1),
                reload: Default::default(),
            },
        };
        tokio::spawn(async {
            asng_controller::run(config, listener, None, std::future::pending()).await.unwrap();
        });
        Channel::from_shared(url).unwrap().connect().await.unwrap()
    });
    (runtime, channel)
});

fuzz_target!(|data: &[u8]| {
    let Some((&method, message)) = data.split_first() else { return };
    let request = Request::framed(METHODS[usize::from(method) % METHODS.len()], message);
    let (runtime, channel) = &*CONTROLLER;
    let status = runtime.block_on(request.send(&mut channel.clone()));
    assert!(!is_fault(&status), "{status}: {request:?}");
});
