//! `asngctl` against the real controller: watching through an outage, the history, pictures and studies in files, failover.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

use asng_proto::v1::{self, lease_step_response::Next};
use asng_tests::{Controller, asngctl, categoricals, create_request, report, train};
use serde_json::Value;

fn command(controllers: &str, line: &str) -> Command {
    let mut command = Command::new(asngctl());
    command.args(["--controller", controllers]).args(line.split_whitespace());
    command
}

/// A port that was free a moment ago, where nobody listens.
fn dead() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn text(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(output: Output) -> Value {
    serde_json::from_str(&text(output)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_study_is_watched_through_a_restart_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    controller.studies().create_study(create_request("s", 40)).await.unwrap();
    let mut watch = command(&controller.url(), "study watch s --output json");
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut line = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(line()["progress"]["applied"], 0);
    controller.kill();
    while line()["outage"] != true {}
    controller.restart();
    train(controller.search(), "s", "t", |_, _| ()).await;
    while line()["state"] != "FINISHED" {}
    assert!(watch.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_is_written_and_a_study_moves_in_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("a"));
    controller.studies().create_study(create_request("s", 9)).await.unwrap();
    train(controller.search(), "s", "t", |_, _| ()).await;
    // The first address is of no use.
    let controllers = format!("{},{}", dead(), controller.url());
    let run = |line: &str| command(&controllers, line).current_dir(&directory).output().unwrap();

    let history = text(run("study history s"));
    let rows: Vec<Vec<&str>> = history.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 1 + 9 * 4, "two to train and two to rank in each step");
    assert_eq!((rows[0][0], rows[0][10], rows[0][22]), ("step", "loss", "width"));
    assert_eq!((rows[36][0], rows[36][2], rows[36][5]), ("9", "APPLIED", "t"));
    let newest = text(run("study history s --newest-first"));
    assert!(newest.lines().nth(1).is_some_and(|line| line.starts_with("9,")), "{newest}");
    let trainers = json(run("study trainers s --output json"));
    assert_eq!((&trainers[0]["trainer_id"], &trainers[0]["applied"]), (&"t".into(), &9.into()));
    let written = text(run("study history s --format json --out h.json"));
    assert_eq!(written, "the history is in h.json\n");
    let lines = std::fs::read_to_string(directory.path().join("h.json")).unwrap();
    assert_eq!(lines.lines().count(), 9);

    text(run("study export s"));
    let other = Controller::start(&directory.path().join("b"));
    let elsewhere = |line: &str| {
        let controllers = format!("{},{}", dead(), other.url());
        command(&controllers, line).current_dir(&directory).output().unwrap()
    };
    text(elsewhere("study import s.asng --name t"));
    assert_eq!(text(elsewhere("study history t")), history);
    let again = elsewhere("study import s.asng --name t");
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists"), "{again:?}");
    cut(&directory.path().join("s.asng"));
    let half = elsewhere("study import s.asng --name half");
    assert!(String::from_utf8_lossy(&half.stderr).contains("ends within a part"), "{half:?}");
    assert_eq!(json(elsewhere("study list --output json")).as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_and_a_report_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    controller.studies().create_study(create_request("s", 9)).await.unwrap();
    train(controller.search(), "s", "the <trainer>", |_, _| ()).await;
    let run =
        |line: &str| command(&controller.url(), line).current_dir(&directory).output().unwrap();
    let read = |file: &str| std::fs::read_to_string(directory.path().join(file)).unwrap();

    assert!(text(run("study plot s --what theta")).contains("s-theta.svg"));
    let theta = read("s-theta.svg");
    assert!(theta.starts_with("<svg") && theta.contains("v9 = c4: "), "{theta}");
    for (what, word) in [("convergence", "entropy"), ("loss", "median")] {
        text(run(&format!("study plot s --what {what}")));
        assert!(read(&format!("s-{what}.svg")).contains(word), "{what}");
    }
    text(run("study plot s --what front --out front.html"));
    let front = read("front.html");
    assert!(front.starts_with("<!DOCTYPE html>") && front.contains("parameters"), "{front}");

    assert_eq!(json(run("study report s --output json"))["file"], "s.html");
    let report = read("s.html");
    for id in [
        "progress",
        "theta",
        "convergence",
        "loss",
        "front",
        "trainers",
        "reports",
        "found",
        "spec",
    ] {
        assert!(report.contains(&format!("id=\"{id}\"")), "{id} in {report}");
    }
    assert!(
        report.contains("9 of 9 (100.0 %)") && report.contains("the &lt;trainer&gt;"),
        "{report}"
    );
    assert!(!report.contains("src=") && !report.contains("href="), "{report}");

    // What cannot be drawn leaves what is there alone.
    std::fs::write(directory.path().join("kept.svg"), "old").unwrap();
    let graph = run("study plot s --what architecture --out kept.svg");
    assert!(String::from_utf8_lossy(&graph.stderr).contains("no graph can be drawn"), "{graph:?}");
    assert_eq!((graph.status.code(), &*read("kept.svg")), (Some(1), "old"));
    assert_eq!(run("study plot s --what theta --out theta.png").status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dash_stands_for_standard_output_and_input() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    controller.studies().create_study(create_request("s", 9)).await.unwrap();
    train(controller.search(), "s", "t", |_, _| ()).await;
    let run =
        |line: &str| command(&controller.url(), line).current_dir(&directory).output().unwrap();
    let with_input = |line: &str, input: &[u8]| {
        let mut command = command(&controller.url(), line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    };
    assert_eq!(text(run("study history s --out -")), text(run("study history s")));
    let picture = text(run("study plot s --what theta --out -"));
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>"), "{picture}");
    let report = text(run("study report s --out -"));
    assert!(report.starts_with("<!DOCTYPE html>") && report.ends_with("</html>"), "{report}");
    let export = run("study export s --out -");
    assert!(export.status.success() && export.stdout.len() > 1000);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "no file is written");
    for what in ["plot s --what theta", "report s", "export s"] {
        let both = run(&format!("study {what} --out - --output json"));
        assert_eq!(both.status.code(), Some(2), "{both:?}");
        assert!(String::from_utf8_lossy(&both.stderr).contains("leave out one of them"));
    }

    text(with_input("study import - --name t", &export.stdout));
    assert_eq!(text(run("study history t")), text(run("study history s")));
    let short = with_input("study import - --name u", &export.stdout[..export.stdout.len() - 1]);
    assert!(String::from_utf8_lossy(&short.stderr).contains("cannot read standard input"));
    let variables = br#"[{"name": "op", "choices": ["a", "b"]}]"#;
    text(with_input("study create v --variables - --max-steps 9", variables));
    let distribution = text(run("study distribution v --output json"));
    text(with_input("study clone v w --start-distribution -", distribution.as_bytes()));
    let wrong = with_input("study create x --variables - --max-steps 9", b"{");
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("error: standard input: "),
        "{wrong:?}"
    );
    let both = "study create x --variables - --start-distribution - --max-steps 9";
    let both = with_input(both, b"");
    assert!(String::from_utf8_lossy(&both.stderr).contains("cannot both be read"), "{both:?}");

    let (code, shown) = on_a_terminal(&controller.url(), "study export s --out -", "");
    assert!(code == Some(1) && shown.contains("standard output is a terminal"), "{shown}");
}

/// Runs a command on a terminal where somebody types `input`. Returns its exit status and what is shown.
fn on_a_terminal(controllers: &str, line: &str, input: &str) -> (Option<i32>, String) {
    let line = format!("{} --controller {controllers} {line}", asngctl().display());
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_study_for_good_asks_first() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    controller.studies().create_study(create_request("s", 9)).await.unwrap();
    let url = controller.url();
    let run = |line: &str| command(&url, line).stdin(Stdio::null()).output().unwrap();
    let state = || {
        let output = command(&url, "study show s --output json").output().unwrap();
        json(output)["state"].as_str().unwrap().to_owned()
    };
    for verb in ["stop", "delete"] {
        let silent = run(&format!("study {verb} s"));
        let needs = format!("without a terminal to confirm on, `study {verb}` needs --yes");
        assert_eq!(silent.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&silent.stderr).contains(&needs), "{silent:?}");
        let (code, shown) = on_a_terminal(&url, &format!("study {verb} s"), "n\n");
        assert_eq!((code, &*state()), (Some(1), "RUNNING"), "{shown}");
        assert!(shown.contains(&format!("{verb} study `s` (RUNNING, 0 reports) for good? [y/N]")));
        assert!(shown.contains("cancelled; the study is unchanged"), "{shown}");
    }
    let (code, shown) = on_a_terminal(&url, "study stop s", "y\n");
    assert_eq!((code, &*state()), (Some(0), "STOPPED"), "{shown}");
    text(run("study stop s --yes"));
    text(run("study delete s --yes"));
    assert_eq!(run("study show s").status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_printed_or_refused_by_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    controller.studies().create_study(create_request("s", 9)).await.unwrap();
    train(controller.search(), "s", "t", |_, _| ()).await;
    let run = |line: &str| {
        let line = format!("{line} --output json");
        command(&controller.url(), &line).current_dir(&directory).output().unwrap()
    };
    for line in [
        "study list",
        "study show s",
        "study distribution s",
        "study trainers s",
        "study clone s c --start-from s",
        "study pause c",
        "study resume c",
        "study stop c --yes",
        "study delete c --yes",
        "study plot s --what theta",
        "study report s",
        "study export s",
        "study import s.asng --name i",
        "health",
    ] {
        json(run(line));
    }
    // These print an object a line.
    for (line, lines) in [("study watch s", 1), ("study history s", 9), ("doctor", 6)] {
        let text = text(run(line));
        let objects = text.lines().map(|line| serde_json::from_str(line).unwrap());
        assert_eq!(objects.filter(Value::is_object).count(), lines, "{text}");
    }
    assert_eq!(json(run("study history s --out h.json"))["file"], "h.json");
    assert!(text(run("study history s --format csv")).starts_with("step,"));
    let script = run("completions bash");
    assert_eq!((script.status.code(), script.stdout.len()), (Some(2), 0));
    assert!(String::from_utf8_lossy(&script.stderr).contains("leave out --output json"));
    // Errors are text.
    let unknown = run("study show none");
    assert_eq!((unknown.status.code(), unknown.stdout.len()), (Some(1), 0));
    assert!(unknown.stderr.starts_with(b"error: "), "{unknown:?}");
}

/// Takes the last byte off a file.
fn cut(file: &Path) {
    let content = std::fs::read(file).unwrap();
    std::fs::write(file, &content[..content.len() - 1]).unwrap();
}

#[test]
fn a_clone_starts_where_its_source_is_and_is_found_by_its_labels() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let variables = directory.path().join("variables.json");
    std::fs::write(
        &variables,
        r#"[{"name": "op", "choices": ["a", "b"]}, {"name": "w", "low": 1, "high": 9}]"#,
    )
    .unwrap();
    let run = |line: &str| {
        let line = format!("{line} --output json");
        json(command(&controller.url(), &line).current_dir(&directory).output().unwrap())
    };
    let flags = "--max-steps 9 --fix op=b --label team=x --owner lab --target loss<=0.5 --keep-last 4 --seed 3 --warmup-steps 7";
    run(&format!("study create s --variables {} {flags}", variables.display()));
    let copy = run("study clone s copy --max-steps 8 --start-from s --label team=y");
    let spec = &copy["spec"];
    assert_eq!(
        (&spec["stop"]["max_steps"], &spec["stop"]["target"]["metric"]),
        (&8.into(), &"loss".into())
    );
    assert_eq!((&spec["start"]["study"], &spec["fixed"]["op"]), (&"s".into(), &"b".into()));
    assert_eq!((&spec["algorithm"]["seed"], &spec["retention"]["last"]), (&Value::Null, &4.into()));
    assert_eq!(copy["owner"], "lab");
    // Its weights are new, whatever its distribution has learnt.
    assert_eq!(spec["algorithm"]["warmup_steps"], 7);
    let listed = |flags: &str| {
        let studies = run(&format!("study list {flags}"));
        let names = studies.as_array().unwrap().iter().map(|study| study["name"].clone());
        names.collect::<Vec<_>>()
    };
    assert_eq!(listed("--owner lab"), ["s", "copy"]);
    assert_eq!(listed("--owner lab --label team=y"), ["copy"]);
    assert!(listed("--owner other").is_empty());

    let distribution = run("study distribution s").to_string();
    std::fs::write(directory.path().join("d.json"), distribution).unwrap();
    let third = run("study clone s third --start-distribution d.json --warmup-steps 0");
    assert_eq!(third["spec"]["algorithm"]["warmup_steps"], 0);
    let short = command(&controller.url(), "study clone s short --max-steps 6").output().unwrap();
    let error = String::from_utf8_lossy(&short.stderr);
    assert!(error.contains("algorithm.warmup_steps: 7 is above stop.max_steps, 6"), "{error}");
    assert_eq!(run("study distribution third"), run("study distribution s"));
}

#[test]
fn the_doctor_says_what_is_wrong_where() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let healthy = text(command(&controller.url(), "doctor").output().unwrap());
    for check in ["connection", "health", "access", "reflection"] {
        assert!(
            healthy.lines().any(|line| line.contains(check) && line.contains(" ok ")),
            "{healthy}"
        );
    }
    let controllers = format!("{},{}", controller.url(), dead());
    let output = command(&controllers, "doctor --output json").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines = String::from_utf8(output.stdout).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["check"], &last["ok"]), (&"connection".into(), &false.into()));
    assert!(
        last["detail"].as_str().unwrap().contains("check that the controller is running"),
        "{last}"
    );
}

#[test]
fn health_is_asked_of_the_controller_or_of_what_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    let url = controller.url();
    assert_eq!(text(command(&url, "health").output().unwrap()), "SERVING\n");
    // As in a trainer's container, where these options are for another.
    let mut other = command("https://elsewhere:1", &format!("health {url}"));
    let other = other.env("ASNG_TLS_CA", "ca.pem").output().unwrap();
    assert_eq!(text(other), "SERVING\n");
    controller.kill();
    assert_eq!(command(&url, "health").output().unwrap().status.code(), Some(1));
}

/// A request of the trainer `gpu-1`, which serves these spaces, and not `inpaint-cat`.
fn request_of_gpu_1(spaces: &[&str]) -> v1::LeaseStepRequest {
    let reason = "no photos in data/photos".into();
    v1::LeaseStepRequest {
        trainer_id: "gpu-1".into(),
        spaces: spaces.iter().map(ToString::to_string).collect(),
        unserved: vec![v1::UnservedSpace { space: "inpaint-cat".into(), reason }],
        ..Default::default()
    }
}

async fn lease(controller: &Controller, request: v1::LeaseStepRequest) -> Next {
    controller.search().lease_step(request).await.unwrap().into_inner().next.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn trainers_are_listed_with_what_keeps_them_from_work() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let run = |line: &str| command(&controller.url(), line).output().unwrap();
    assert!(text(run("trainer list")).starts_with("no trainer has asked this controller for work"));
    assert_eq!(json(run("trainer list --output json")), Value::Array(Vec::new()));

    for (name, space) in [("cifar", "enas-micro"), ("broken", "toy")] {
        let mut request = create_request(name, 10);
        request.spec.as_mut().unwrap().space = space.into();
        controller.studies().create_study(request).await.unwrap();
    }
    let broken = &json(run("study show broken --output json"))["study_id"];
    let request = v1::LeaseStepRequest {
        set_aside: vec![v1::SetAsideStudy {
            study: "broken".into(),
            study_id: broken.as_str().unwrap().into(),
            reason: "none of the 2 checkpoints is whole".into(),
            retry_after: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        }],
        ..request_of_gpu_1(&["enas-micro", "toy"])
    };
    let Next::Step(step) = lease(&controller, request).await else { panic!("no step") };
    assert_eq!(step.study, "cifar");

    let table = text(run("trainer list"));
    for words in [
        "gpu-1",
        "s ago",
        " cifar ",
        "enas-micro, toy",
        "inpaint-cat: no photos in data/photos",
        "broken: none of the 2 checkpoints is whole; tries again in",
    ] {
        assert!(table.contains(words), "{words:?} in\n{table}");
    }
    let listed = json(run("trainer list --output json"));
    let trainer = &listed[0];
    assert_eq!((&trainer["trainer_id"], &trainer["study"]), (&"gpu-1".into(), &"cifar".into()));
    assert_eq!(trainer["unserved"][0]["reason"], "no photos in data/photos");
    assert_eq!(trainer["set_aside"][0]["study"], "broken");
    assert!(trainer["last_seen"].is_string() && trainer["set_aside"][0]["retry_after"].is_string());

    // Also a study that is RUNNING says who has set it aside, and one that somebody works on has nothing to say.
    let shown = text(run("study show broken"));
    let words =
        "gpu-1 has set this study aside: none of the 2 checkpoints is whole; tries again in";
    assert!(shown.contains("no trainer works on this study") && shown.contains(words), "{shown}");
    assert_eq!(json(run("study show cifar --output json"))["notes"], Value::Array(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_study_is_told_why_and_again_when_that_changes() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut request = create_request("cifar", 10);
    request.spec.as_mut().unwrap().space = "enas-micro".into();
    controller.studies().create_study(request).await.unwrap();
    let create = "study create faces --space inpaint-cat --max-steps 9 --wait";
    let mut create = command(&controller.url(), create);
    let mut create = create.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(create.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    let mut line_with = |words: &str| {
        loop {
            let line = lines.next().unwrap_or_else(|| panic!("no {words:?} in {seen:?}")).unwrap();
            let found = line.contains(words);
            seen.push(line);
            if found {
                return seen.clone();
            }
        }
    };
    line_with("is WAITING for a trainer that serves `inpaint-cat`");
    let serve = format!("start one with `asng-trainer serve --controller {}`", controller.url());
    line_with(&format!("no trainer has asked this controller for work; {serve}"));
    let Next::Step(_) = lease(&controller, request_of_gpu_1(&["enas-micro", "toy"])).await else {
        panic!("no step")
    };
    line_with("no connected trainer serves space inpaint-cat");
    line_with("gpu-1 (serves enas-micro, toy; works on cifar): no photos in data/photos");
    let waiting =
        "waiting for gpu-1, which works on cifar and describes new studies between two steps";
    let photos = v1::LeaseStepRequest {
        study: "cifar".into(),
        unserved: Vec::new(),
        ..request_of_gpu_1(&["enas-micro", "inpaint-cat"])
    };
    let Next::Step(_) = lease(&controller, photos).await else { panic!("no step") };
    line_with(waiting);
    let shown = text(command(&controller.url(), "study show faces").output().unwrap());
    assert!(shown.contains(waiting), "{shown}");
    let description = v1::SpaceDescription { variables: categoricals(3), costs: None };
    let request = v1::DescribeSpaceRequest {
        study: "faces".into(),
        trainer_id: "gpu-1".into(),
        answer: Some(v1::describe_space_request::Answer::Description(description)),
    };
    controller.search().describe_space(request).await.unwrap();
    let seen = line_with("study `faces` is RUNNING");
    assert!(create.wait().unwrap().success());
    for (i, line) in seen.iter().enumerate().filter(|(_, line)| line.starts_with("  ")) {
        assert!(!seen[..i].contains(line), "{line:?} is printed twice: {seen:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_space_file_makes_a_study_that_says_which_data_set_it_waits_for() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let url = controller.url();
    let run = |line: &str| command(&url, line).current_dir(&directory).output().unwrap();
    let refused = |line: &str| {
        let output = run(line);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let write = |text: &str| std::fs::write(directory.path().join("my.toml"), text).unwrap();
    let create = "study create mine --space-file my.toml --set dataset=flowers --preset quick";
    assert!(refused(create).contains("cannot read my.toml"));
    write("[cells]\nnodes = = 2\n");
    let error = refused(create);
    assert!(error.contains("my.toml") && error.contains("line 2"), "{error}");
    write("[tree]");
    assert!(refused(create).contains("must have a table [cells] or a table [chain]"));
    let definition = "name = 'small'\n[cells]\n";
    write(definition);
    let created = text(run(create));
    let waits =
        "study `mine` is WAITING for a trainer that serves `cells` and has data set `flowers`\n";
    assert!(
        created.starts_with(waits) && created.ends_with(" --images flowers=DIR`\n"),
        "{created}"
    );
    assert_eq!(text(run("study show mine --definition")), definition);
    let shown = json(run("study show mine --output json"));
    assert_eq!(shown["spec"]["space_definition"], definition);
    assert_eq!(shown["spec"]["stop"]["max_steps"], 2000);
    assert!(text(run("study show mine")).contains("cells, defined by a file: small, 23 bytes"));
    assert_eq!(json(run("study list --output json"))[0]["spec"]["space_definition"], "");
    write("name = 'smaller'\n[cells]\n");
    let other = refused(create);
    assert!(other.contains("space_definition is "), "{other}");

    let request = v1::LeaseStepRequest {
        trainer_id: "gpu-1".into(),
        spaces: vec!["cells".into()],
        data_sets: vec!["cifar10".into(), "birds".into()],
        ..Default::default()
    };
    assert!(matches!(lease(&controller, request).await, Next::NoWork(_)));
    let shown = text(run("study show mine"));
    let serve =
        format!("start one with `asng-trainer serve --controller {url} --images flowers=DIR`");
    for words in [
        &format!("no connected trainer that serves space cells has data set flowers; {serve}"),
        "gpu-1 (serves cells; has no work): has only the data sets cifar10, birds",
    ] {
        assert!(shown.contains(words), "{shown}");
    }
    assert!(text(run("trainer list")).contains("cifar10, birds"));
    assert_eq!(json(run("trainer list --output json"))[0]["data_sets"][1], "birds");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_wait_for_a_study_get_its_json_alone_on_stdout() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let create = "study create faces --space inpaint-cat --max-steps 9 --wait --output json";
    let mut create = command(&controller.url(), create);
    let mut create = create.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(create.stderr.take().unwrap()).lines();
    let note = notes.next().unwrap().unwrap();
    assert!(note.starts_with("no trainer has asked this controller for work"), "{note}");
    let violation = v1::FieldViolation { field: "settings.x".into(), description: "is 0".into() };
    let rejection = v1::Rejection { violations: vec![violation] };
    let request = v1::DescribeSpaceRequest {
        study: "faces".into(),
        trainer_id: "gpu-1".into(),
        answer: Some(v1::describe_space_request::Answer::Rejection(rejection)),
    };
    controller.search().describe_space(request).await.unwrap();
    let output = create.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let study: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(study["state"], "FAILED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_study_that_loses_reports_to_staleness_says_what_to_change() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut request = create_request("s", 100);
    request.spec.as_mut().unwrap().algorithm.as_mut().unwrap().max_staleness = Some(1);
    controller.studies().create_study(request).await.unwrap();
    let note = || {
        let shown = command(&controller.url(), "study show s --output json").output().unwrap();
        let notes = json(shown)["notes"].as_array().unwrap().clone();
        notes.iter().find(|note| note.as_str().unwrap().contains("STALE")).cloned()
    };
    let reported = async |trainer: &str, step: &v1::Step| {
        let report = v1::ReportStepRequest { lease_next: false, ..report(step, trainer) };
        controller.search().report_step(report).await.unwrap().into_inner().outcome()
    };
    let step = async |trainer: &str| {
        let request = v1::LeaseStepRequest {
            study: "s".into(),
            trainer_id: trainer.into(),
            ..Default::default()
        };
        match lease(&controller, request).await {
            Next::Step(step) => step,
            other => panic!("{other:?}"),
        }
    };
    // One trainer is so slow that two updates pass meanwhile.
    for round in 0..7 {
        assert_eq!(note(), None, "round {round}");
        let slow = step("slow").await;
        for _ in 0..2 {
            let quick = step("quick").await;
            assert_eq!(reported("quick", &quick).await, v1::ReportOutcome::Applied);
        }
        assert_eq!(reported("slow", &slow).await, v1::ReportOutcome::Stale);
    }
    let note = note().unwrap();
    let note = note.as_str().unwrap();
    assert!(note.starts_with("7 of 21 reports were STALE, late by more than 1 updates"), "{note}");
    assert!(note.contains("max_staleness") && note.contains("lease"), "{note}");
}

#[test]
fn studies_are_listed_by_state_and_name_and_their_number_is_told_when_some_are_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let variables = directory.path().join("variables.json");
    std::fs::write(&variables, r#"[{"name": "op", "choices": ["a", "b"]}]"#).unwrap();
    let run =
        |line: &str| command(&controller.url(), line).current_dir(&directory).output().unwrap();
    for name in ["cats-1", "Cats-2", "dogs", "cats-3"] {
        text(run(&format!("study create {name} --variables variables.json --max-steps 9")));
    }
    text(run("study pause dogs"));
    text(run("study stop cats-3 --yes"));
    let listed = |flags: &str| {
        let studies = json(run(&format!("study list --output json {flags}")));
        let names = studies.as_array().unwrap().iter().map(|study| study["name"].clone());
        names.collect::<Vec<_>>()
    };
    assert_eq!(listed("--name CATS"), ["cats-1", "Cats-2", "cats-3"]);
    assert_eq!(listed("--state paused --state STOPPED"), ["dogs", "cats-3"]);
    assert_eq!(listed("--name cats --state running --limit 1"), ["cats-1"]);
    assert_eq!(listed("--name cats --newest-first --limit 2"), ["cats-3", "Cats-2"]);
    assert!(listed("--state failed").is_empty());

    let table = text(run("study list --name cats --limit 2"));
    assert!(table.ends_with("\n2 of 3 studies that match\n"), "{table}");
    let all = text(run("study list --name cats --limit 3"));
    assert_eq!(all.lines().count(), 4, "{all}");
    let some = run("study list --name cats --limit 2 --output json");
    assert_eq!(String::from_utf8_lossy(&some.stderr), "2 of 3 studies that match\n");
    let unknown = run("study list --state done");
    let errors = String::from_utf8_lossy(&unknown.stderr);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        errors.contains("expected waiting, running, paused, finished, stopped or failed"),
        "{errors}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_study_is_replaced_by_its_correction() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let run = |line: &str| command(&controller.url(), line).output().unwrap();
    text(run("study create s --space mine --max-steps 9 --set depth=0"));
    text(run("study create source --space mine --max-steps 9 --set depth=2"));
    let reject = async || {
        let violation =
            v1::FieldViolation { field: "settings.depth".into(), description: "is 0".into() };
        let rejection = v1::Rejection { violations: vec![violation] };
        let request = v1::DescribeSpaceRequest {
            study: "s".into(),
            trainer_id: "gpu-1".into(),
            answer: Some(v1::describe_space_request::Answer::Rejection(rejection)),
        };
        controller.search().describe_space(request).await.unwrap();
    };
    reject().await;
    let watched = run("study watch s");
    let errors = String::from_utf8_lossy(&watched.stderr);
    assert!(errors.contains("settings.depth: is 0\nCorrect them and create"), "{errors}");
    let create = "study create s --space mine --max-steps 9 --set depth=1";
    let refused = run(create);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(errors.contains("--replace"), "{errors}");
    let created = json(run(&format!("{create} --replace --output json")));
    assert_eq!(
        (&created["state"], &created["spec"]["settings"]["depth"]),
        (&"WAITING".into(), &"1".into())
    );

    reject().await;
    assert_eq!(run("study clone source s").status.code(), Some(1));
    let cloned = json(run("study clone source s --replace --output json"));
    assert_eq!(
        (&cloned["state"], &cloned["spec"]["settings"]["depth"]),
        (&"WAITING".into(), &"2".into())
    );
}
