//! The images, built from the Dockerfiles and run as docker/compose.yaml runs them: certificates, a controller and a trainer under mutual
//! TLS, as a user who may write to nothing but the volumes, search until the study is finished.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::Output,
    thread,
    time::Instant,
};

use asng_tests::{Buildah, Contained, Container, ports};
use serde_json::Value;

/// Of the controller's image beyond its base.
const MOST_MEGABYTES: u64 = 60;

/// Directories in place of the volumes of compose.yaml, which take the owner of what they are mounted on.
struct Volumes(tempfile::TempDir);

impl Volumes {
    fn make() -> Volumes {
        let directory = tempfile::tempdir().unwrap();
        for name in ["certs", "state", "work"] {
            let volume = directory.path().join(name);
            fs::create_dir(&volume).unwrap();
            std::os::unix::fs::chown(volume, Some(10001), Some(10001)).unwrap();
        }
        Volumes(directory)
    }

    /// The option that mounts one.
    fn mount(&self, name: &str, at: &str) -> String {
        format!("--volume={}:{at}", self.0.path().join(name).display())
    }
}

/// Runs a program in a container until it ends; returns what it prints.
fn run(container: &Container<'_>, options: &[&str], program: &str) -> String {
    let Output { status, stdout, stderr } = container.command(options, program).output().unwrap();
    assert!(status.success(), "{program:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Starts a program in a container. Returns where it serves gRPC.
fn serve(container: &Container<'_>, options: &[&str], program: &str) -> (Contained, SocketAddr) {
    let mut program = container.start(options, program);
    let mut log = BufReader::new(program.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let (address, _) = ports(&mut || log.next());
    // Keeps the pipe empty.
    thread::spawn(move || log.for_each(|line| eprintln!("{line}")));
    (program, address)
}

#[test]
fn controller_and_trainer_from_their_images_finish_a_search_under_mutual_tls() {
    let Some(buildah) = Buildah::start() else { return };
    for name in ["controller", "trainer"] {
        let start = Instant::now();
        buildah.build(name);
        let (megabytes, time) = (buildah.bytes(name) / 1_000_000, start.elapsed());
        eprintln!("{name}: {megabytes} MB beyond its base, built in {time:.0?}");
        assert!(name == "trainer" || megabytes < MOST_MEGABYTES);
    }
    let volumes = Volumes::make();
    let certs = volumes.mount("certs", "/etc/asng");
    let controller = buildah.container("asng-controller");
    let make_certs = "asng-controller certs --out /etc/asng --host controller --host localhost \
                      --client client --force";
    // At each start.
    for _ in 0..2 {
        run(&controller, &[&certs], make_certs);
    }
    // Of its clients; its own are flags, which go before these.
    let tls = [
        &certs,
        "--env=ASNG_TLS_CA=/etc/asng/ca.pem",
        "--env=ASNG_TLS_CERT=/etc/asng/client.pem",
        "--env=ASNG_TLS_KEY=/etc/asng/client-key.pem",
    ];
    let start = "asng-controller --tls-cert=/etc/asng/server.pem --tls-key=/etc/asng/server-key.pem \
                 --tls-client-ca=/etc/asng/ca.pem --insecure";
    let state = volumes.mount("state", "/var/lib/asng");
    // All containers of this test share this machine's network.
    let listen = ["--env=ASNG_LISTEN=127.0.0.1:0", "--env=ASNG_HTTP=127.0.0.1:0"];
    let options = [&tls[..], &[&state], &listen].concat();
    let (_controller, address) = serve(&controller, &options, start);
    let url = format!("--env=ASNG_CONTROLLER=https://localhost:{}", address.port());
    let client = [&tls[..], &[&url]].concat();
    assert_eq!(run(&controller, &client, &controller.health_check()), "SERVING\n");

    let trainer = buildah.container("asng-trainer");
    let work = volumes.mount("work", "/var/lib/asng-trainer");
    let listen = ["--env=ASNG_TRAINER_LISTEN=127.0.0.1:0", "--env=ASNG_TRAINER_HTTP=127.0.0.1:0"];
    let calm = ["--env=ASNG_THREADS=1", "--env=GOMP_SPINCOUNT=10000"];
    let options = [&client[..], &[&work], &listen, &calm].concat();
    let (mut served, address) = serve(&trainer, &options, "asng-trainer serve");
    let check = trainer.health_check().replace("50053", &address.port().to_string());
    assert_eq!(run(&trainer, &client, &check), "SERVING\n");

    let create = "asngctl study create boxed --space toy --preset quick --max-steps 500";
    run(&controller, &client, create);
    run(&controller, &client, "asngctl study watch boxed");
    let study = run(&controller, &client, "asngctl study show boxed --output json");
    let study: Value = serde_json::from_str(&study).unwrap();
    assert_eq!((&study["state"], &study["progress"]["applied"]), (&"FINISHED".into(), &500.into()));
    run(&trainer, &client, &format!("asngctl trainer drain --trainer http://{address}"));
    assert!(served.0.wait().unwrap().success());
}
