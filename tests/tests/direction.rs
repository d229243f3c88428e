//! A study that maximizes ends bit for bit where one ends that minimizes the negated values, through crashes and moves, and people see
//! the values as they were reported.

use std::process::{Command, Output};

use asng_proto::v1::{self, Direction, lease_step_response::Next};
use asng_tests::{Controller, asngctl, create_request, limit, report, theta};
use tokio_stream::StreamExt;
use tonic::Code;

fn request(name: &str, direction: Direction) -> v1::CreateStudyRequest {
    let mut request = create_request(name, 400);
    let spec = request.spec.as_mut().unwrap();
    spec.direction = direction.into();
    spec.algorithm.as_mut().unwrap().lambda_theta = Some(6);
    request
}

/// Reports `steps` steps of a study, with the loss of the scripted trainer, or its negative where the study maximizes.
async fn work(controller: &Controller, study: &str, direction: Direction, steps: usize) {
    let sign = if direction == Direction::Maximize { -1.0 } else { 1.0 };
    for request in 0..steps {
        let request = v1::LeaseStepRequest {
            study: study.into(),
            trainer_id: "t".into(),
            request_id: format!("{request}"),
            ..Default::default()
        };
        let next = controller.search().lease_step(request).await.unwrap().into_inner().next;
        let Some(Next::Step(step)) = next else { panic!("no step: {next:?}") };
        let mut request = v1::ReportStepRequest { lease_next: false, ..report(&step, "t") };
        request.losses.iter_mut().for_each(|loss| *loss *= sign);
        if step.step_id.is_multiple_of(7) {
            request.losses[0] =
                [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][step.step_id as usize % 3];
        }
        controller.search().report_step(request).await.unwrap();
    }
}

async fn get(controller: &Controller, name: &str) -> v1::Study {
    let request = v1::GetStudyRequest { name: name.into() };
    controller.studies().get_study(request).await.unwrap().into_inner().study.unwrap()
}

/// Pauses a study, and moves it to another controller.
async fn take_along(from: &Controller, to: &Controller, name: &str) {
    from.studies().pause_study(v1::PauseStudyRequest { name: name.into() }).await.unwrap();
    let request = v1::ExportStudyRequest { name: name.into(), fork: false };
    let mut stream = from.studies().export_study(request).await.unwrap().into_inner();
    let mut parts = Vec::new();
    while let Some(response) = stream.next().await {
        parts.push(v1::ImportStudyRequest { part: response.unwrap().part, ..Default::default() });
    }
    to.studies().import_study(tokio_stream::iter(parts)).await.unwrap();
    to.studies().resume_study(v1::ResumeStudyRequest { name: name.into() }).await.unwrap();
}

#[tokio::test]
async fn a_search_that_maximizes_is_one_that_minimizes_the_negated_values() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut here, there) = (Controller::start(here.path()), Controller::start(there.path()));
    let costs = vec![v1::CostRule { weight: Some(0.05), ..limit(420.0) }];
    let both = [("min", Direction::Minimize), ("max", Direction::Maximize)];
    for (name, direction) in both {
        let mut request = request(name, direction);
        request.spec.as_mut().unwrap().costs = costs.clone();
        here.studies().create_study(request).await.unwrap();
        work(&here, name, direction, 100).await;
        here.kill();
        here.restart();
        work(&here, name, direction, 20).await;
        take_along(&here, &there, name).await;
        work(&there, name, direction, 280).await;
    }
    let mut studies = there.studies();
    assert_eq!(theta(&mut studies, "max").await, theta(&mut studies, "min").await);
    let (min, max) = (get(&there, "min").await, get(&there, "max").await);
    assert_eq!(max.spec.as_ref().unwrap().direction(), Direction::Maximize);
    assert_eq!((max.state(), max.progress), (v1::StudyState::Finished, min.progress));
    let negated = min.incumbent.clone().map(|best| v1::Incumbent { loss: -best.loss, ..best });
    assert_eq!(max.incumbent, negated);
    assert_eq!((&max.chosen, max.chosen.is_some()), (&min.chosen, true));
    let values = |study: &v1::Study, sign: f64| -> Vec<(f64, f64)> {
        let points = study.fronts.iter().flat_map(|front| &front.points);
        points.map(|point| (point.cost, sign * point.loss)).collect()
    };
    assert_eq!(values(&max, 1.0), values(&min, -1.0));
}

#[tokio::test]
async fn a_search_that_maximizes_finds_what_is_best() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    controller.studies().create_study(request("max", Direction::Maximize)).await.unwrap();
    work(&controller, "max", Direction::Maximize, 400).await;
    let mode = get(&controller, "max").await.mode.unwrap().values;
    let (choices, width) = mode.split_at(10);
    assert!(choices.iter().filter(|&&choice| choice == 0).count() >= 8, "{mode:?}");
    assert!(width[0] < 20, "{mode:?}");
}

#[tokio::test]
async fn the_direction_is_part_of_the_spec_and_to_minimize_is_the_default() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let create = async |direction: i32| {
        let mut request = request("s", Direction::Unspecified);
        request.spec.as_mut().unwrap().direction = direction;
        let answer = controller.studies().create_study(request).await;
        answer.map(|answer| answer.into_inner().study.unwrap())
    };
    let first = create(Direction::Unspecified.into()).await.unwrap();
    assert_eq!(first.spec.as_ref().unwrap().direction(), Direction::Minimize);
    assert_eq!(create(Direction::Minimize.into()).await.unwrap(), first);
    let other = create(Direction::Maximize.into()).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    assert!(other.message().contains("direction is MINIMIZE there and MAXIMIZE here"), "{other}");
    let unknown = create(7).await.unwrap_err();
    assert!(unknown.message().contains("spec.direction: 7 is not a known direction"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn people_read_of_values_and_not_of_losses() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut minimizes = request("min", Direction::Minimize);
    minimizes.spec.as_mut().unwrap().costs = vec![limit(500.0)];
    controller.studies().create_study(minimizes).await.unwrap();
    let asngctl = |line: &str| -> Output {
        let mut command = Command::new(asngctl());
        command.args(["--controller", &controller.url()]).args(line.split(' '));
        command.current_dir(&directory).output().unwrap()
    };
    let run = |line: &str| {
        let output = asngctl(line);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!asngctl("study clone min max --direction up").status.success());
    run(
        "study clone min max --direction maximize --penalty parameters=0.05 --max-steps 9 --seed 1",
    );
    work(&controller, "max", Direction::Maximize, 9).await;
    let shown = run("study show max");
    for words in [
        "MAXIMIZE",
        "best value",
        "0.05 x parameters subtracted from the value",
        "Value against macs",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(!shown.to_lowercase().contains("loss"), "{shown}");
    assert!(run("study show min").contains("MINIMIZE"));
    let shown: serde_json::Value =
        serde_json::from_str(&run("study show max --output json")).unwrap();
    assert_eq!(shown["spec"]["direction"], "MAXIMIZE");
    let best = shown["incumbent"]["loss"].as_f64().unwrap();
    assert!(best < 0.0, "as it was reported");
    let points = shown["fronts"][1]["points"].as_array().unwrap();
    assert!(points.is_sorted_by(|a, b| a["loss"].as_f64() < b["loss"].as_f64()), "{points:?}");
    assert!(run("study list").contains(&format!("{best:.4}")));
    assert!(run("study watch max").contains(&format!("best value {best:.4}")));

    run("study report max --out max.html");
    let report = std::fs::read_to_string(directory.path().join("max.html")).unwrap();
    for words in [
        "Values and metrics",
        "best value",
        "Values: median and interquartile range",
        "Largest value by parameters: Pareto front",
    ] {
        assert!(report.contains(words), "{words}");
    }
    assert!(!report.contains(">losses<") && !report.contains("best loss"));
}
