//! A PostgreSQL server of the test's own, from the system's package.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Where Debian keeps its versions of the server.
const PACKAGES: &str = "/usr/lib/postgresql";
/// The only user of the server, and the system's user it runs as when the tests run as root.
const USER: &str = "postgres";

/// A server on a free port of loopback, durable as PostgreSQL is by default; gone when dropped.
pub struct Postgres {
    server: Child,
    programs: PathBuf,
    port: u16,
    directory: TempDir,
}

impl Postgres {
    /// Starts one and waits until it answers. Where there is no PostgreSQL, says so and returns none, so that the test
    /// can be skipped.
    ///
    /// # Panics
    ///
    /// If it does not start, or is not there although `CI` is set.
    pub fn start() -> Option<Postgres> {
        let Some(programs) = programs() else {
            let missing = "PostgreSQL is not installed: `cargo xtask setup postgresql` installs it";
            assert!(env::var_os("CI").is_none(), "{missing}");
            eprintln!("skipped: {missing}");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        if is_root() {
            run(Command::new("chown").arg(USER).arg(directory.path()));
        }
        let data = directory.path().join("data");
        run(program(&programs, "initdb").arg("--pgdata").arg(&data).args([
            "--auth=trust",
            "--username",
            USER,
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let server = serve(&programs, directory.path(), port);
        let postgres = Postgres { server, programs, port, directory };
        postgres.wait();
        Some(postgres)
    }

    /// Waits until it answers.
    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.client("pg_isready").output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "PostgreSQL does not start");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it and its children at once; they would outlive a kill.
    pub fn stop(&mut self) {
        // Both fail if it has ended already.
        let _ = Command::new("kill").args(["-QUIT", &self.server.id().to_string()]).status();
        let _ = self.server.wait();
    }

    /// Starts it again on the same data and port, after [`stop`](Postgres::stop), and waits until it answers.
    pub fn restart(&mut self) {
        self.server = serve(&self.programs, self.directory.path(), self.port);
        self.wait();
    }

    /// Makes the database `name` and returns its URL.
    pub fn url(&self, name: &str) -> String {
        run(self.client("createdb").arg(name));
        format!("postgres://{USER}@127.0.0.1:{}/{name}", self.port)
    }

    fn client(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.args(["-h", "127.0.0.1", "-U", USER, "-p", &self.port.to_string()]);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(programs: &Path, directory: &Path, port: u16) -> Child {
    program(programs, "postgres")
        .arg("-D")
        .arg(directory.join("data"))
        .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
        .args(["-p", &port.to_string()])
        .stderr(fs::File::create(directory.join("log")).unwrap())
        .spawn()
        .expect("postgres")
}

/// The programs of the newest version installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir(PACKAGES).ok()?.flatten();
    let numbered = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let programs = entry.path().join("bin");
        programs.join("initdb").exists().then_some((version, programs))
    });
    numbered.max().map(|(_, programs)| programs)
}

pub(crate) fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id");
    id.stdout.trim_ascii() == b"0"
}

/// A program that refuses to run as root, as a user who is not.
fn program(programs: &Path, name: &str) -> Command {
    let path = programs.join(name);
    let mut command = if is_root() {
        // Becomes the program, so that the child is the server itself.
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    command.current_dir("/").stdout(Stdio::null());
    command
}

fn run(command: &mut Command) {
    let Output { status, stderr, .. } = command.output().expect("a program");
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
}
