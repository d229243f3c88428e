//! Images built and run without a Docker engine. What the Dockerfiles start from cannot be had everywhere, so stand-ins take its names:
//! Debian by debootstrap, and for Rust the same with a compiler and this machine's toolchain.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

use crate::{postgres::is_root, terminate};

const DEBIAN: &str = "docker.io/library/debian:bookworm-slim";
const RUST: &str = "docker.io/library/rust:1.95-bookworm";
/// Where the toolchain lies in the stand-in for Rust.
const TOOLCHAIN: &str = "/usr/local/rust";
/// Files that this machine may need to reach registries, in the stand-ins as well.
const NETWORK: [&str; 2] = ["/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt"];

/// Images and containers of the tests, in the workspace's directory `target/images`, where stand-ins and what was compiled stay for the
/// next time.
pub struct Buildah {
    directory: PathBuf,
}

impl Buildah {
    /// Makes the stand-ins if they are not there. Where buildah is missing, or may not be used, says so and returns none, so that the
    /// test can be skipped.
    ///
    /// # Panics
    ///
    /// If a stand-in cannot be made, or buildah is missing although `CI` is set.
    pub fn start() -> Option<Buildah> {
        let there = |program| Command::new(program).arg("--version").output().is_ok();
        if !(is_root() && there("buildah") && there("debootstrap")) {
            let missing =
                "images take root and buildah: `cargo xtask setup containers` installs it";
            assert!(env::var_os("CI").is_none(), "{missing}");
            eprintln!("skipped: {missing}");
            return None;
        }
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/images");
        fs::create_dir_all(&directory).unwrap();
        let buildah = Buildah { directory: directory.canonicalize().unwrap() };
        buildah.share_crates();
        if !buildah.has(DEBIAN) {
            buildah.make_debian();
        }
        if !buildah.has(RUST) {
            buildah.make_rust();
        }
        Some(buildah)
    }

    /// A command line of buildah on the images here.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.directory.join("storage"));
        // A directory that stays mounted could not be removed.
        command.args(["--storage-opt", "overlay.skip_mount_home=true"]);
        command.arg("--runroot").arg(self.directory.join("run")).args(arguments);
        // Below it are the caches of `RUN --mount=type=cache`.
        command.env("TMPDIR", self.temporary());
        command
    }

    /// Builds the image `name` from the workspace with a Dockerfile of `docker/`.
    pub fn build(&self, name: &str) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
        let rustc = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
        let toolchain = String::from_utf8(rustc.stdout).unwrap();
        let toolchain = format!("{}:{TOOLCHAIN}:ro", toolchain.trim());
        let file = root.join(format!("docker/Dockerfile.{name}"));
        let tag = format!("asng-{name}");
        let mut build = self.command(&["bud", "--isolation", "chroot", "--pull-never"]);
        // The only one in which a health check has a place.
        build.args(["--format", "docker", "--volume", &toolchain, "--tag", &tag, "--file"]);
        run(build.arg(file).arg(root));
    }

    /// Bytes that an image has beyond its base.
    pub fn bytes(&self, name: &str) -> u64 {
        let of = |image: &str| -> u64 {
            let container = self.container(image);
            let mounted = run(&mut self.command(&["mount", &container.name]));
            let sum = run(Command::new("du").args(["-s", "--block-size=1"]).arg(mounted.trim()));
            sum.split_whitespace().next().unwrap().parse().unwrap()
        };
        of(&format!("asng-{name}")) - of(DEBIAN)
    }

    /// A container of an image, gone when dropped.
    pub fn container(&self, image: &str) -> Container<'_> {
        let name = run(&mut self.command(&["from", "--pull-never", image])).trim().to_owned();
        Container { buildah: self, name }
    }

    fn temporary(&self) -> PathBuf {
        self.directory.join("tmp")
    }

    fn has(&self, image: &str) -> bool {
        let mut inspect = self.command(&["inspect", "--type", "image", image]);
        inspect.output().unwrap().status.success()
    }

    /// The cache of crates is this machine's own.
    fn share_crates(&self) {
        let caches = self.temporary().join("buildah-cache");
        fs::create_dir_all(&caches).unwrap();
        let home = env::var_os("CARGO_HOME")
            .map_or_else(|| Path::new(&env::var_os("HOME").unwrap()).join(".cargo"), PathBuf::from);
        let here = caches.join("asng-registry");
        if !here.exists() {
            symlink(home.join("registry"), here).unwrap();
        }
    }

    fn make_debian(&self) {
        let base = self.directory.join("base");
        // What an interrupted run left.
        let _ = fs::remove_dir_all(&base);
        run(Command::new("debootstrap")
            .args(["--variant=minbase", "--include=ca-certificates", "bookworm"])
            .arg(&base));
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        self.make(DEBIAN, &format!("FROM scratch\nCOPY . /\nENV PATH={path}\n"), &base);
        fs::remove_dir_all(base).unwrap();
    }

    fn make_rust(&self) {
        let context = tempfile::tempdir_in(&self.directory).unwrap();
        let mut file = format!(
            "FROM {DEBIAN}\n\
             RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3 \
             && rm -rf /var/lib/apt/lists/*\n\
             ENV CARGO_HOME=/usr/local/cargo PATH={TOOLCHAIN}/bin:$PATH\n"
        );
        for path in NETWORK.into_iter().filter(|path| Path::new(path).exists()) {
            let name = Path::new(path).file_name().unwrap();
            fs::copy(path, context.path().join(name)).unwrap();
            file += &format!("COPY {} {path}\n", name.display());
        }
        self.make(RUST, &file, context.path());
    }

    fn make(&self, image: &str, dockerfile: &str, context: &Path) {
        let file = self.directory.join("Dockerfile");
        fs::write(&file, dockerfile).unwrap();
        let mut build = self.command(&["bud", "--isolation", "chroot", "--pull-never"]);
        run(build.args(["--tag", image, "--file"]).arg(file).arg(context));
    }
}

/// A container.
pub struct Container<'a> {
    buildah: &'a Buildah,
    /// By which buildah knows it.
    pub name: String,
}

impl Container<'_> {
    /// A command line in it, as its user, with its environment and these options of `buildah run`.
    pub fn command(&self, options: &[&str], line: &str) -> Command {
        let run = ["run", "--isolation", "chroot"];
        let line: Vec<_> = line.split_whitespace().collect();
        self.buildah.command(&[&run[..], options, &[&self.name, "--"], &line].concat())
    }

    /// Starts such a command line.
    pub fn start(&self, options: &[&str], line: &str) -> Contained {
        Contained(self.command(options, line).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// The command of the image's health check.
    pub fn health_check(&self) -> String {
        let text = run(&mut self.buildah.command(&["inspect", &self.name]));
        let mut image: Value = serde_json::from_str(&text).unwrap();
        let check = image["Docker"]["config"]["Healthcheck"]["Test"].take();
        let check: Vec<String> = serde_json::from_value(check).unwrap();
        assert_eq!(check[0], "CMD", "a shell is not needed");
        check[1..].join(" ")
    }
}

/// A program that runs in a container, ended when dropped. Its standard error is a pipe.
pub struct Contained(pub Child);

impl Drop for Contained {
    fn drop(&mut self) {
        // Killed, buildah would leave its program alone.
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            terminate(&mut self.0);
        }
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // A test that fails may leave a process in it, which keeps it.
        let _ = self.buildah.command(&["rm", &self.name]).output();
    }
}

/// Runs a program and returns what it prints to standard output.
///
/// # Panics
///
/// If it fails. The message has the last lines of both streams, where a build names its error.
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("a program");
    let [stdout, stderr] = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(
        status.success(),
        "{command:?}: {status}\n{}\n{}",
        last_lines(&stdout, 15),
        last_lines(&stderr, 30)
    );
    stdout
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
