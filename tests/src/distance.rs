//! Two machines far from each other: network namespaces with a line between them that is long, loses packets, and can be
//! cut.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{self, Command, Output},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinSet,
    time::sleep_until,
};

/// Of the range for tests of network devices, which nothing else should use.
const RANGE: &str = "198.18.0.0/29";
const HOME: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const GATE_OF_HOME: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const AWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 6);
const GATE_OF_AWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 5);

/// One of the two machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Where the controller is.
    Home,
    /// Where a trainer is: it reaches nothing but the line's end.
    Away,
}

/// Both machines and what is between them; gone when dropped. This test's process stands in the middle: it reaches the machine at
/// home directly.
pub struct Distance {
    /// A process of its own may have one of these at a time.
    id: u32,
    line: JoinSet<()>,
}

impl Distance {
    /// Address of the machine at home.
    pub const HOME: Ipv4Addr = HOME;
    /// Address at which the other machine finds what is served at home.
    pub const LINE: Ipv4Addr = GATE_OF_AWAY;

    /// Sets the machines up; of the packets to and from the one away the share `loss` is lost. Where that is not allowed, says so and returns
    /// none, so that the test can be skipped.
    ///
    /// # Panics
    ///
    /// If it cannot be done although `CI` is set.
    pub fn start(loss: f64) -> Option<Distance> {
        let distance = Distance { id: process::id(), line: JoinSet::new() };
        if let Err(reason) = distance.set_up(loss) {
            let missing = format!("no network namespaces, which take root and iptables: {reason}");
            assert!(env::var_os("CI").is_none(), "{missing}");
            eprintln!("skipped: {missing}");
            return None;
        }
        Some(distance)
    }

    fn set_up(&self, loss: f64) -> Result<(), String> {
        if !run("ip", &["route", "show", "root", RANGE])?.is_empty() {
            return Err(format!("this machine uses addresses of {RANGE} already"));
        }
        for (machine, address, gate) in
            [(Machine::Home, HOME, GATE_OF_HOME), (Machine::Away, AWAY, GATE_OF_AWAY)]
        {
            let (namespace, outside) = (self.namespace(machine), self.outside(machine));
            let (address, gate) = (format!("{address}/30"), format!("{gate}/30"));
            run("ip", &["netns", "add", &namespace])?;
            run(
                "ip",
                &[
                    "link", "add", &outside, "type", "veth", "peer", "name", "line", "netns",
                    &namespace,
                ],
            )?;
            run("ip", &["address", "add", &gate, "dev", &outside])?;
            run("ip", &["link", "set", &outside, "up"])?;
            run("ip", &["-n", &namespace, "address", "add", &address, "dev", "line"])?;
            run("ip", &["-n", &namespace, "link", "set", "line", "up"])?;
            run("ip", &["-n", &namespace, "link", "set", "lo", "up"])?;
        }
        let loss = loss.to_string();
        for chain in ["INPUT", "OUTPUT"] {
            let lose = ["-m", "statistic", "--mode", "random", "--probability", &loss];
            self.away_iptables(&[&["-A", chain], &lose[..], &["-j", "DROP"]].concat())?;
        }
        Ok(())
    }

    /// The command line of a program that is to run on a machine.
    pub fn command(&self, machine: Machine, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(machine)]).arg(program);
        command
    }

    /// Lays a line from the machine away to `server`, on which everything takes half of `round_trip` in each direction. Returns its end
    /// there.
    pub async fn lay(&mut self, server: SocketAddr, round_trip: Duration) -> SocketAddr {
        let listener = TcpListener::bind((GATE_OF_AWAY, 0)).await.unwrap();
        let end = listener.local_addr().unwrap();
        self.line.spawn(line(listener, server, round_trip));
        end
    }

    /// Cuts the line: from now on every packet is lost, and nobody is told.
    pub fn cut(&self) {
        for chain in ["INPUT", "OUTPUT"] {
            self.away_iptables(&["-I", chain, "-j", "DROP"]).unwrap();
        }
    }

    /// Mends the line.
    pub fn mend(&self) {
        for chain in ["INPUT", "OUTPUT"] {
            self.away_iptables(&["-D", chain, "1"]).unwrap();
        }
    }

    fn away_iptables(&self, arguments: &[&str]) -> Result<(), String> {
        let namespace = self.namespace(Machine::Away);
        run("ip", &[&["netns", "exec", &namespace, "iptables", "-w"], arguments].concat())?;
        Ok(())
    }

    fn namespace(&self, machine: Machine) -> String {
        match machine {
            Machine::Home => format!("asng-home-{}", self.id),
            Machine::Away => format!("asng-away-{}", self.id),
        }
    }

    /// Name of a machine's interface on this side, at most 15 characters.
    fn outside(&self, machine: Machine) -> String {
        match machine {
            Machine::Home => format!("asngh{}", self.id),
            Machine::Away => format!("asnga{}", self.id),
        }
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        for machine in [Machine::Home, Machine::Away] {
            // The interfaces go with it. It fails if it was never made.
            let _ = run("ip", &["netns", "delete", &self.namespace(machine)]);
        }
    }
}

/// Lays a line from `listener` to `server`, on which everything takes half of `round_trip` in each direction.
pub async fn line(listener: TcpListener, server: SocketAddr, round_trip: Duration) {
    loop {
        let (near, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(server).await else { return };
            // Without effect on a connection that is gone, which reading from it tells.
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
            tokio::spawn(delay(from_near, to_far, round_trip / 2));
            tokio::spawn(delay(from_far, to_near, round_trip / 2));
        });
    }
}

/// Passes on whatever comes, each piece `time` after it came, however many are on the way.
async fn delay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, time: Duration) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((due, piece)) = receiver.recv().await {
            sleep_until(due.into()).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if sender.send((Instant::now() + time, buffer[..read].to_vec())).is_err() {
            return;
        }
    }
}

/// Runs a program and returns what it prints.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let Output { status, stdout, stderr } =
        output.map_err(|error| format!("{program}: {error}"))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&stderr).trim()))
}
