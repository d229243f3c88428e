//! The dashboard and the alerts of docker/, asked of a real Prometheus that watches real programs: each expression has an answer, so that
//! none names a metric or a label that does not exist.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use asng_tests::{Controller, Process, create_request, ports, trainer_command};
use serde_json::Value;

const DOCKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docker");

/// Returns true if Prometheus is installed. Panics if it is not although `CI` is set.
fn is_there() -> bool {
    let there = Command::new("prometheus").arg("--version").output().is_ok();
    if !there {
        let missing = "Prometheus is not installed: `cargo xtask setup containers` installs it";
        assert!(env::var_os("CI").is_none(), "{missing}");
        eprintln!("skipped: {missing}");
    }
    there
}

/// A Prometheus with the configuration of docker/.
struct Prometheus {
    address: SocketAddr,
    _process: Process,
}

impl Prometheus {
    /// Starts one that looks at these two, every second.
    fn start(directory: &Path, controller: SocketAddr, trainer: SocketAddr) -> Prometheus {
        let mut config = fs::read_to_string(format!("{DOCKER}/prometheus.yaml")).unwrap();
        for (there, here) in [
            ("controller:50052", controller.to_string()),
            ("trainer:50054", trainer.to_string()),
            ("15s", "1s".into()),
        ] {
            assert!(config.contains(there), "{config}");
            config = config.replace(there, &here);
        }
        fs::write(directory.join("prometheus.yaml"), config).unwrap();
        fs::copy(format!("{DOCKER}/alerts.yaml"), directory.join("alerts.yaml")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let child = Command::new("prometheus")
            .args(["--config.file=prometheus.yaml", "--storage.tsdb.path=metrics"])
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .current_dir(directory)
            .spawn()
            .unwrap();
        Prometheus { address, _process: Process(child) }
    }

    /// The data of an answer of its API; none while it does not answer.
    fn get(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let url = format!("http://{}/api/v1/{path}", self.address);
        let call = ureq::get(url)
            .query_pairs(query.iter().copied())
            .config()
            .http_status_as_error(false)
            .build();
        let answer = call.call().ok()?.body_mut().read_to_string().ok()?;
        let mut answer: Value = serde_json::from_str(&answer).ok()?;
        assert_eq!(answer["status"], "success", "{query:?}: {answer}");
        Some(answer["data"].take())
    }

    /// Returns true if an expression has any value now.
    fn knows(&self, expression: &str) -> bool {
        let data = self.get("query", &[("query", expression)]);
        data.is_some_and(|data| !data["result"].as_array().unwrap().is_empty())
    }
}

/// Every expression of the dashboard, as Grafana asks it.
fn dashboard() -> BTreeSet<String> {
    let text = fs::read_to_string(format!("{DOCKER}/grafana/asng.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    expressions.map(|text| text.replace("$__rate_interval", "1m").replace("$study", ".+")).collect()
}

/// Every metric that an expression names.
fn metrics(expression: &str) -> impl Iterator<Item = String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("asng_") || *word == "up").map(String::from)
}

#[tokio::test]
async fn every_expression_of_the_dashboard_and_of_the_alerts_has_an_answer() {
    if !is_there() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(&directory.path().join("state"));
    let mut request = create_request("watched", 1_000_000);
    let spec = request.spec.as_mut().unwrap();
    (spec.variables, spec.space) = (vec![], "toy".into());
    controller.studies().create_study(request).await.unwrap();
    let mut trainer = Process(
        trainer_command(&controller, &directory.path().join("work"))
            .args(["serve", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0"])
            .args(["--checkpoint-every", "1s"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut log = BufReader::new(trainer.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let (_, watched) = ports(&mut || log.next());
    // So that a call has failed. Reading on keeps the pipe empty.
    assert!(log.any(|line| line.contains("study opened")));
    controller.kill();
    assert!(log.any(|line| line.contains("does not answer")));
    controller.restart();
    thread::spawn(move || log.for_each(drop));

    let prometheus = Prometheus::start(directory.path(), controller.http, watched);
    let start = Instant::now();
    let wait_for = |expression: &str| {
        while !prometheus.knows(expression) {
            assert!(start.elapsed() < Duration::from_secs(60), "no answer to {expression}");
            thread::sleep(Duration::from_millis(100));
        }
    };
    let expressions = dashboard();
    assert!(expressions.len() > 20);
    expressions.iter().for_each(|expression| wait_for(expression));

    // An alert has no value while all is well; what it looks at has.
    let groups = prometheus.get("rules", &[]).unwrap();
    let rules = groups["groups"][0]["rules"].as_array().unwrap();
    assert!(!rules.is_empty());
    for rule in rules {
        let expression = rule["query"].as_str().unwrap();
        metrics(expression).for_each(|metric| wait_for(&metric));
    }
}
