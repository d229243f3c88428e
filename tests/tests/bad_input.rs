//! Invalid requests are refused with the field, and nothing has changed.

use asng_proto::v1::{self, lease_step_response::Next};
use asng_tests::{Controller, create_request, report};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The fields that a status complains of.
fn fields(status: &Status) -> Vec<String> {
    let details = status.get_details_bad_request();
    let violations = details.map(|details| details.field_violations).unwrap_or_default();
    violations.into_iter().map(|violation| violation.field).collect()
}

fn categorical(name: &str, choices: &[&str]) -> v1::Variable {
    let choices = choices.iter().map(ToString::to_string).collect();
    let kind = v1::variable::Kind::Categorical(v1::Categorical { choices });
    v1::Variable { name: name.into(), kind: Some(kind) }
}

#[tokio::test]
async fn malformed_studies_are_refused_by_field() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut studies = controller.studies();
    let integer = v1::Variable {
        name: "i".into(),
        kind: Some(v1::variable::Kind::Integer(v1::Integer { low: 3, high: 2 })),
    };
    let huge: Vec<String> = (0..20_000).map(|i| i.to_string()).collect();
    let huge: Vec<&str> = huge.iter().map(String::as_str).collect();
    let a = || categorical("a", &["x", "y"]);
    let no_kind = v1::Variable { name: "n".into(), kind: None };
    for (variables, field) in [
        (vec![], "spec.space"),
        (vec![categorical("a", &[])], "spec.variables[0].choices"),
        (vec![integer], "spec.variables[0]"),
        (vec![a(), a()], "spec.variables[1].name"),
        (vec![categorical("a", &huge)], "spec.variables[0].choices"),
        (vec![a(), no_kind], "spec.variables[1].kind"),
        (vec![categorical("a", &["only"])], "spec.variables"),
    ] {
        let mut request = create_request("s", 10);
        request.spec.as_mut().unwrap().variables = variables;
        let status = studies.create_study(request).await.unwrap_err();
        assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec![field.into()]));
    }
    for (space, definition, field) in [
        ("cells", "x".repeat(65_537), "spec.space_definition"),
        ("enas-micro", "[cells]".into(), "spec.space"),
    ] {
        let mut request = create_request("s", 10);
        let spec = request.spec.as_mut().unwrap();
        (spec.space, spec.space_definition) = (space.into(), definition);
        // A trainer describes the variables of a definition.
        let status = studies.create_study(request.clone()).await.unwrap_err();
        assert_eq!(fields(&status), [field, "spec.variables"]);
        request.spec.as_mut().unwrap().variables.clear();
        let status = studies.create_study(request).await.unwrap_err();
        assert_eq!(fields(&status), [field]);
    }
    let mut request = create_request("not/a/name", 0);
    let algorithm = request.spec.as_mut().unwrap().algorithm.as_mut().unwrap();
    (algorithm.alpha, algorithm.lambda_theta) = (Some(-1.0), Some(1));
    let status = studies.create_study(request).await.unwrap_err();
    assert_eq!(
        fields(&status),
        ["name", "spec.algorithm.lambda_theta", "spec.algorithm.alpha", "spec.stop.max_steps"]
    );
    let mut request = create_request("s", 10);
    request.spec.as_mut().unwrap().algorithm.as_mut().unwrap().algorithm = 99;
    let status = studies.create_study(request).await.unwrap_err();
    assert_eq!(fields(&status), ["spec.algorithm.algorithm"]);
    let list = studies.list_studies(v1::ListStudiesRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.studies, []);
}

#[tokio::test]
async fn the_same_name_with_another_spec_already_exists() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut studies = controller.studies();
    let first = studies.create_study(create_request("s", 10)).await.unwrap().into_inner();
    let again = studies.create_study(create_request("s", 10)).await.unwrap().into_inner();
    assert_eq!(first, again);
    let status = studies.create_study(create_request("s", 11)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let message = "study \"s\" exists with another spec: stop.max_steps is 10 there and 11 here";
    assert_eq!(status.message(), message);
    let resource = status.get_details_resource_info().unwrap();
    assert_eq!((&*resource.resource_name, &*resource.description), ("s", message));
    let mut request = create_request("s", 10);
    let spec = request.spec.as_mut().unwrap();
    spec.settings = [("depth".into(), "x".repeat(1000))].into();
    spec.labels = [("team".into(), "a".into())].into();
    spec.variables[3].name = "other".into();
    let status = studies.create_study(request).await.unwrap_err();
    let expected = "study \"s\" exists with another spec: \
        settings[\"depth\"] is not set there and \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx… here, \
        variables[\"v3\"] is [\"c0\", \"c1\", \"c2\", \"c3\", \"c4\"] there and not set here, and 2 more";
    assert_eq!(status.message(), expected);
    let fields = status.get_details_bad_request().unwrap().field_violations;
    let told: Vec<_> = fields.iter().map(|f| format!("{} {}", f.field, f.description)).collect();
    assert_eq!(told.len(), 4);
    assert_eq!(told[3], "spec.labels[\"team\"] is not set there and \"a\" here");
}

#[tokio::test]
async fn bad_reports_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let (mut studies, mut search) = (controller.studies(), controller.search());
    studies.create_study(create_request("s", 10)).await.unwrap();
    let lease =
        v1::LeaseStepRequest { study: "s".into(), trainer_id: "t".into(), ..Default::default() };
    let answer = search.lease_step(lease.clone()).await.unwrap().into_inner();
    let Some(Next::Step(step)) = answer.next else { panic!("{answer:?}") };
    let get = v1::GetStudyRequest { name: "s".into() };
    let before = studies.get_study(get.clone()).await.unwrap().into_inner();

    let good = report(&step, "t");
    let mut refused = Vec::new();
    let mut bad = vec![good.clone(); 6];
    bad[0].losses.pop();
    bad[1].study = "other".into();
    bad[2].step_id = 77;
    bad[3].lease_id = "nonsense".into();
    bad[4].trainer_id = String::new();
    bad[5].lease_id = step.lease_id.replace("-1-1", "-1-2");
    for request in bad {
        let status = search.report_step(request).await.unwrap_err();
        refused.push((status.code(), fields(&status)));
    }
    let invalid = |field: &str| (Code::InvalidArgument, vec![field.to_string()]);
    assert_eq!(
        refused,
        [
            invalid("losses"),
            (Code::NotFound, vec![]),
            invalid("lease_id"),
            invalid("lease_id"),
            invalid("trainer_id"),
            (Code::NotFound, vec![]),
        ]
    );
    assert_eq!(studies.get_study(get).await.unwrap().into_inner(), before);

    let unnamed = v1::LeaseStepRequest { study: String::new(), ..lease.clone() };
    assert_eq!(fields(&search.lease_step(unnamed).await.unwrap_err()), ["study"]);
    let unknown = v1::LeaseStepRequest { study: "other".into(), ..lease };
    assert_eq!(search.lease_step(unknown).await.unwrap_err().code(), Code::NotFound);
    let page = v1::ListStudiesRequest { page_token: "x".into(), ..Default::default() };
    assert_eq!(fields(&studies.list_studies(page).await.unwrap_err()), ["page_token"]);
}

#[tokio::test]
async fn a_report_of_a_deleted_study_does_not_count_for_its_namesake() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let (mut studies, mut search) = (controller.studies(), controller.search());
    studies.create_study(create_request("s", 10)).await.unwrap();
    let lease =
        v1::LeaseStepRequest { study: "s".into(), trainer_id: "t".into(), ..Default::default() };
    let answer = search.lease_step(lease.clone()).await.unwrap().into_inner();
    let Some(Next::Step(step)) = answer.next else { panic!("{answer:?}") };
    studies.delete_study(v1::DeleteStudyRequest { name: "s".into() }).await.unwrap();
    studies.create_study(create_request("s", 10)).await.unwrap();
    search.lease_step(lease).await.unwrap();
    let status = search.report_step(report(&step, "t")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
}
