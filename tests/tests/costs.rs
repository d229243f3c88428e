//! Costs of architectures: the final one is within every limit, and the stored costs are never lost.

use std::env;

use asng_proto::v1;
use asng_tests::{
    Controller, applied, asngctl, costs, create_request, limit, report, study_when, train,
};
use tokio::task::JoinSet;
use tonic::Code;
use tonic_types::StatusExt;

fn parameters(architecture: &v1::Architecture) -> f64 {
    costs(architecture).figures["parameters"]
}

fn mode(study: &v1::Study) -> f64 {
    parameters(study.mode.as_ref().unwrap())
}

/// Costs of the final architecture, as the trainer counts them, which are those that the study knows.
fn chosen(study: &v1::Study) -> f64 {
    let chosen = study.chosen.as_ref().unwrap();
    let parameters = parameters(chosen.architecture.as_ref().unwrap());
    assert_eq!(chosen.costs["parameters"], parameters);
    parameters
}

/// `ASNG_LIMITED_SEARCHES` searches, each with a seed and a limit of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_parameters_is_never_exceeded_by_the_final_architecture() {
    let searches = env::var("ASNG_LIMITED_SEARCHES");
    let searches: u64 = searches.map_or(10, |searches| searches.parse().expect("a number"));
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut created = controller.studies();
    let mut running = JoinSet::new();
    for seed in 0..searches {
        let most = 250.0 + 20.0 * (seed % 10) as f64;
        let name = format!("s{seed}");
        let mut request = create_request(&name, 150);
        let spec = request.spec.as_mut().unwrap();
        spec.costs = vec![limit(most)];
        spec.algorithm.as_mut().unwrap().seed = Some(seed);
        created.create_study(request).await.unwrap();
        let search = controller.search();
        running.spawn(async move {
            let study = train(search, &name, "t", |_, _| {}).await;
            assert!(chosen(&study) <= most, "seed {seed}: {} of {most}", chosen(&study));
            let incumbent = study.incumbent.unwrap();
            assert!(incumbent.costs["parameters"] <= most, "seed {seed}");
            let over = study.progress.unwrap().over_limit;
            assert!(over > 0, "seed {seed}: the limit means something");
        });
    }
    // The same without a limit: what is good is dear.
    created.create_study(create_request("free", 150)).await.unwrap();
    let study = train(controller.search(), "free", "t", |_, _| {}).await;
    assert!(mode(&study) > 430.0, "{}", mode(&study));
    assert_eq!(study.chosen.unwrap().architecture, study.mode);
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_costs_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    let mut request = create_request("s", 1_000);
    let keep = Some(v1::retention::Keep::Every(7));
    let spec = request.spec.as_mut().unwrap();
    spec.retention = Some(v1::Retention { keep });
    spec.costs = vec![v1::CostRule { weight: Some(0.01), ..limit(330.0) }];
    controller.studies().create_study(request).await.unwrap();
    let search = controller.search();
    let training = tokio::spawn(async move { train(search, "s", "t", |_, _| {}).await });
    for kill in 1..4 {
        study_when(&controller, "s", |study| applied(study) > 100 * kill).await;
        let request = v1::PauseStudyRequest { name: "s".into() };
        controller.studies().pause_study(request).await.unwrap();
        let idle =
            |study: &v1::Study| study.progress.is_some_and(|progress| progress.outstanding == 0);
        let before = study_when(&controller, "s", idle).await;
        assert!(before.chosen.is_some() && before.fronts.len() == 2);
        controller.kill();
        controller.restart();
        assert_eq!(study_when(&controller, "s", |_| true).await, before);
        let request = v1::ResumeStudyRequest { name: "s".into() };
        controller.studies().resume_study(request).await.unwrap();
    }
    assert!(chosen(&training.await.unwrap()) <= 330.0);
}

#[tokio::test]
async fn costs_that_cannot_be_are_refused_by_field() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut request = create_request("s", 10);
    request.spec.as_mut().unwrap().costs = vec![limit(-1.0)];
    let fields = |status: tonic::Status| -> Vec<String> {
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_details_bad_request().unwrap();
        details.field_violations.into_iter().map(|violation| violation.field).collect()
    };
    let refused = controller.studies().create_study(request.clone()).await.unwrap_err();
    assert_eq!(fields(refused), ["spec.costs[0].limit"]);
    request.spec.as_mut().unwrap().costs = vec![limit(300.0)];
    controller.studies().create_study(request).await.unwrap();
    let lease =
        v1::LeaseStepRequest { study: "s".into(), trainer_id: "t".into(), ..Default::default() };
    let next = controller.search().lease_step(lease).await.unwrap().into_inner().next;
    let Some(v1::lease_step_response::Next::Step(step)) = next else { panic!("{next:?}") };
    let good = report(&step, "t");
    let costs = |figures: &[(&str, f64)]| v1::Costs {
        figures: figures.iter().map(|(name, cost)| (name.to_string(), *cost)).collect(),
    };
    let first = good.costs[0].clone();
    let many: Vec<_> = (0..11).map(|i| (format!("{i}"), 1.0)).collect();
    for (costs, field) in [
        (vec![], "costs"),
        (vec![first.clone()], "costs"),
        (vec![first.clone(); 3], "costs"),
        (vec![first.clone(), costs(&[("macs", 1.0)])], "costs"),
        (vec![first.clone(), costs(&[("parameters", f64::NAN)])], "costs[1]"),
        (vec![costs(&[("parameters", -1.0)]), first.clone()], "costs[0]"),
        (vec![costs(&[("parameters", 1.0), ("", 1.0)]), first.clone()], "costs[0]"),
        (vec![v1::Costs { figures: many.into_iter().collect() }, first], "costs[0]"),
    ] {
        let request = v1::ReportStepRequest { costs, ..good.clone() };
        let refused = controller.search().report_step(request).await.unwrap_err();
        assert_eq!(fields(refused), [field]);
    }
    let answer = controller.search().report_step(good).await.unwrap().into_inner();
    assert_eq!(answer.outcome(), v1::ReportOutcome::Applied);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_typed_and_what_was_found_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    controller.studies().create_study(create_request("source", 80)).await.unwrap();
    let run = |line: &str| {
        let mut command = std::process::Command::new(asngctl());
        command.args(["--controller", &controller.url()]).args(line.split_whitespace());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    run("study clone source light --limit parameters=300 --penalty macs=1e-3 --seed 1");
    train(controller.search(), "light", "t", |_, _| {}).await;
    let text = run("study show light");
    for words in ["parameters <= 300", "0.001 x macs added to the loss", "Loss against macs"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let shown: serde_json::Value =
        serde_json::from_str(&run("study show light --output json")).unwrap();
    assert!(shown["chosen"]["costs"]["parameters"].as_f64().unwrap() <= 300.0);
    assert_eq!(shown["fronts"][1]["cost"], "parameters");
    let points = shown["fronts"][1]["points"].as_array().unwrap();
    assert!(points.is_sorted_by(|a, b| a["cost"].as_f64() < b["cost"].as_f64()), "{points:?}");
    assert!(points.is_sorted_by(|a, b| a["loss"].as_f64() > b["loss"].as_f64()), "{points:?}");
    assert!(run("study history light").lines().next().unwrap().contains("loss,costs,v0"));
    assert!(run("study watch light").contains("Loss against parameters"));
    let listed: serde_json::Value = serde_json::from_str(&run("study list --output json")).unwrap();
    assert_eq!(listed[1]["fronts"], serde_json::json!([]), "a list is kept small");
}
