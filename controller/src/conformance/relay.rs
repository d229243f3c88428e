//! The address that the trainer knows, in front of the server: it can be shut as by `kill -9`, and opened again.

use std::{io, net::SocketAddr};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// Passes bytes between those who connect and the server. Shut when dropped.
pub(super) struct Relay {
    address: SocketAddr,
    server: SocketAddr,
    task: JoinHandle<()>,
}

impl Relay {
    pub(super) fn open(listener: TcpListener, server: SocketAddr) -> io::Result<Relay> {
        let address = listener.local_addr()?;
        Ok(Relay { address, server, task: tokio::spawn(pass(listener, server)) })
    }

    /// Cuts every connection; further ones are refused.
    pub(super) async fn shut(&mut self) {
        self.task.abort();
        // It was aborted, which is what is waited for.
        let _ = (&mut self.task).await;
    }

    pub(super) async fn reopen(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.task = tokio::spawn(pass(listener, self.server));
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(listener: TcpListener, server: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((mut client, _)) = listener.accept() => {
                connections.spawn(async move {
                    let mut server = TcpStream::connect(server).await?;
                    client.set_nodelay(true)?;
                    server.set_nodelay(true)?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
            Some(_) = connections.join_next() => {}
            else => return,
        }
    }
}
