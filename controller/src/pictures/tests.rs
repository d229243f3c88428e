use std::time::{Duration, UNIX_EPOCH};

use asng_proto::v1::{
    AlgorithmSettings, Architecture, Candidate, Categorical, CategoricalMarginal, CostRule, Costs,
    Front, FrontPoint, GetDistributionResponse, Incumbent, Integer, IntegerMarginal, LossBand,
    Marginal, Progress, Report, ReportOutcome, Study, StudySpec, StudyState, TracePoint, Trainer,
    Variable, marginal, variable::Kind,
};
use prost_types::Timestamp;
use roxmltree::{Document, Node};

use super::{ink::Ink, *};

fn categorical(name: &str, choices: &[&str]) -> Variable {
    let choices = choices.iter().map(ToString::to_string).collect();
    Variable { name: name.into(), kind: Some(Kind::Categorical(Categorical { choices })) }
}

fn integer(name: &str, low: i64, high: i64) -> Variable {
    Variable { name: name.into(), kind: Some(Kind::Integer(Integer { low, high })) }
}

/// Two cells of five nodes, as the trainer has them.
fn enas_micro() -> Vec<Variable> {
    let ops = ["identity", "avg_pool_3x3", "max_pool_3x3", "sep_conv_3x3", "sep_conv_5x5"];
    let mut variables = Vec::new();
    for cell in ["normal", "reduction"] {
        for node in 0..5 {
            let mut inputs = vec!["cell[-2]".to_owned(), "cell[-1]".to_owned()];
            inputs.extend((0..node).map(|earlier| format!("node{earlier}")));
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let name = |what: &str| format!("{cell}.node{node}.{what}");
            variables.push(categorical(&name("input1"), &inputs));
            variables.push(categorical(&name("input2"), &inputs));
            variables.push(categorical(&name("op1"), &ops));
            variables.push(categorical(&name("op2"), &ops));
        }
    }
    variables
}

/// A row of nodes, of which some lead to the output.
fn inpaint() -> Vec<Variable> {
    let mut variables = Vec::new();
    let place =
        |place: usize| if place == 0 { "image".into() } else { format!("node{}", place - 1) };
    for node in 0..8_usize {
        let inputs: Vec<String> = (node.saturating_sub(2)..=node).map(place).collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        variables.push(integer(&format!("node{node}.kernel"), 1, 3));
        variables.push(categorical(&format!("node{node}.skip"), &["down", "skip"]));
        variables.push(integer(&format!("node{node}.channels"), 64, 256));
        variables.push(categorical(&format!("node{node}.input"), &inputs));
    }
    variables.push(categorical("output.input", &["node5", "node6", "node7"]));
    variables
}

/// A cell of three nodes, each of which may read every earlier one.
fn nasbench201() -> Vec<Variable> {
    let ops = ["none", "skip", "conv_1x1", "conv_3x3", "avg_pool_3x3"];
    let edges = (1..4).flat_map(|node| (0..node).map(move |from| (node, from)));
    edges.map(|(node, from)| categorical(&format!("cell.node{node}.from{from}"), &ops)).collect()
}

/// Six stages of four blocks, half of them of a width that is searched.
fn mobile() -> Vec<Variable> {
    let ops = ["skip", "mbconv_k3_e3", "mbconv_k5_e6_se0.25", "mbconv_k7_e6_se0.25"];
    let mut variables = Vec::new();
    for stage in 0..6 {
        if stage % 2 == 1 {
            variables.push(categorical(&format!("stage{stage}.channels"), &["24", "160", "1280"]));
        }
        for block in 0..4 {
            variables.push(categorical(&format!("stage{stage}.block{block}"), &ops));
        }
    }
    variables
}

/// A snapshot whose final architecture is this one.
fn with_values(variables: Vec<Variable>, values: Vec<i64>) -> StudySnapshot {
    let mut snapshot = snapshot(variables);
    let architecture = Some(Architecture { values });
    snapshot.study.chosen = Some(Candidate { architecture, ..Candidate::default() });
    snapshot
}

/// A study of these variables in its middle, with something in every section.
fn snapshot(variables: Vec<Variable>) -> StudySnapshot {
    let marginal = |(i, variable): (usize, &Variable)| {
        let kind = match variable.kind.as_ref().unwrap() {
            Kind::Categorical(c) => {
                let weights: Vec<f64> = (0..c.choices.len())
                    .map(|k| 1.0 + ((i * 31 + k * 17) % 11) as f64 * i as f64)
                    .collect();
                let sum: f64 = weights.iter().sum();
                let probabilities = weights.iter().map(|weight| weight / sum).collect();
                marginal::Kind::Categorical(CategoricalMarginal { probabilities })
            }
            Kind::Integer(bounds) => {
                let mean =
                    bounds.low as f64 + (bounds.high - bounds.low) as f64 * (i % 5) as f64 / 4.0;
                marginal::Kind::Integer(IntegerMarginal {
                    mean,
                    deviation: (bounds.high - bounds.low) as f64 / 9.0,
                })
            }
        };
        Marginal { name: variable.name.clone(), kind: Some(kind) }
    };
    let marginals: Vec<Marginal> = variables.iter().enumerate().map(marginal).collect();
    let likeliest = |marginal: &Marginal| match marginal.kind.as_ref().unwrap() {
        marginal::Kind::Categorical(c) => {
            let best = (0..).zip(&c.probabilities).max_by(|a, b| a.1.total_cmp(b.1));
            best.map_or(0, |(choice, _)| choice)
        }
        marginal::Kind::Integer(i) => i.mean.round() as i64,
    };
    let mode = Architecture { values: marginals.iter().map(likeliest).collect() };
    let trace = (1..=200_u32).map(|i| {
        let x = f64::from(i) / 200.0;
        let noise = f64::from(i * 7919 % 101) / 101.0 - 0.5;
        let median = 2.3 - 0.9 * x.sqrt() + 0.04 * noise;
        TracePoint {
            applied: u64::from(i) * 100,
            generation: u64::from(i) * 100,
            time: Some(Timestamp { seconds: i.into(), nanos: 0 }),
            convergence: 0.28 + 0.6 * x * x,
            entropy: 1.0 - 0.75 * x,
            delta: (6.0 * x).exp(),
            signal_to_noise: (0.2 + 1.9 * x + noise).max(0.01),
            losses: Some(LossBand { low: median - 0.08, median, high: median + 0.11 }),
            diverged: u64::from(i % 67 == 0),
            metrics: [
                ("train_loss".to_string(), median + 0.2),
                ("learning_rate".to_string(), 0.025 * (1.0 - x)),
            ]
            .into(),
        }
    });
    let point = |i: u32| FrontPoint {
        cost: 1e5 * f64::from(i * i),
        loss: 1.2 + 1.0 / f64::from(i),
        architecture: (i == 4).then(|| mode.clone()),
        step_id: i.into(),
    };
    let report = |i: u32| Report {
        step_id: 1000 - u64::from(i),
        outcome: if i == 3 { ReportOutcome::Stale } else { ReportOutcome::Applied }.into(),
        losses: vec![1.5, if i == 1 { f64::NAN } else { 1.6 }],
        costs: [3, 5]
            .map(|k| Costs { figures: [("parameters".to_string(), 1e5 * f64::from(k + i))].into() })
            .into(),
        trainer_id: "gpu-box-1".into(),
        staleness: i.into(),
        report_time: Some(Timestamp { seconds: 190 - i64::from(i), nanos: 5 }),
        ..Report::default()
    };
    let trainer = |name: &str, holds: &[u64]| Trainer {
        trainer_id: name.into(),
        last_seen: Some(Timestamp { seconds: 150, nanos: 0 }),
        holds: holds.into(),
        applied: 19_000,
        stale: 3,
        duplicate: 1,
        expired: 2,
        mean_staleness: 0.25,
        ..Trainer::default()
    };
    let study = Study {
        name: "cifar".into(),
        spec: Some(StudySpec {
            space: "enas-micro".into(),
            costs: vec![CostRule { cost: "parameters".into(), weight: None, limit: Some(3e6) }],
            ..StudySpec::default()
        }),
        state: StudyState::Running.into(),
        progress: Some(Progress {
            applied: 20_000,
            max_steps: 39_000,
            diverged: 2,
            convergence: 0.88,
            ..Progress::default()
        }),
        incumbent: Some(Incumbent { loss: 1.21, step_id: 77, ..Incumbent::default() }),
        chosen: Some(Candidate { architecture: Some(mode.clone()), ..Candidate::default() }),
        fronts: vec![Front { cost: "parameters".into(), points: (1..=9).map(point).collect() }],
        mode: Some(mode.clone()),
        variables,
        ..Study::default()
    };
    StudySnapshot {
        study,
        distribution: Some(GetDistributionResponse { generation: 20_000, marginals, delta: 3.5 }),
        trace: trace.collect(),
        reports: (0..30).map(report).collect(),
        trainers: vec![trainer("gpu-box-1", &[20_001]), trainer("laptop", &[])],
        notes: vec!["gpu-1 has set this study aside".to_owned().into()],
        rate: Some(6.5),
        now: UNIX_EPOCH + Duration::from_secs(200),
    }
}

const PICTURES: [Picture; 5] =
    [Picture::Theta, Picture::Convergence, Picture::Loss, Picture::Architecture, Picture::Front];

/// A picture of a snapshot, which is XML.
fn drawn(picture: Picture, snapshot: &StudySnapshot) -> String {
    let text = svg(picture, snapshot).unwrap();
    Document::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    text
}

/// All sections as one document of XML.
fn page(snapshot: &StudySnapshot) -> String {
    let body = html! { div { @for s in sections(snapshot) { section id=(s.id) { h2 { (s.title) } (s.body) } } } };
    let text = body.into_string();
    Document::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    text
}

fn count(document: &Document<'_>, is: impl Fn(&Node<'_, '_>) -> bool) -> usize {
    document.descendants().filter(is).count()
}

fn empty() -> StudySnapshot {
    StudySnapshot::of(Study::default(), UNIX_EPOCH)
}

#[test]
fn a_search_fills_every_section_and_an_empty_study_has_only_its_progress() {
    let ids = |snapshot: &StudySnapshot| {
        sections(snapshot).iter().map(|section| section.id).collect::<Vec<_>>()
    };
    let all = [
        "progress",
        "theta",
        "convergence",
        "loss",
        "architecture",
        "front",
        "trainers",
        "reports",
    ];
    assert_eq!(ids(&snapshot(enas_micro())), all);
    assert_eq!(ids(&empty()), ["progress"]);
    page(&empty());
    for picture in PICTURES {
        assert!(!svg(picture, &empty()).unwrap_err().to_string().is_empty(), "{picture:?}");
    }
}

#[test]
fn every_probability_is_told() {
    let snapshot = snapshot(enas_micro());
    let text = drawn(Picture::Theta, &snapshot);
    let document = Document::parse(&text).unwrap();
    let titles: Vec<&str> = document
        .descendants()
        .filter(|node| node.has_tag_name("title"))
        .filter_map(|node| node.text())
        .collect();
    let mut told = 0;
    for (marginal, variable) in
        snapshot.distribution.unwrap().marginals.iter().zip(&snapshot.study.variables)
    {
        let Some(marginal::Kind::Categorical(c)) = &marginal.kind else { unreachable!() };
        for (choice, p) in (0..).zip(&c.probabilities) {
            let title = format!("{} = {}: {p:.3}", variable.name, words::choice(variable, choice));
            assert!(titles.contains(&&*title), "{title}");
            told += 1;
        }
    }
    assert_eq!(titles.len(), told + 1, "and the picture's own");
}

#[test]
fn integers_and_fixed_variables_are_told_as_such() {
    let mut snapshot = snapshot(inpaint());
    snapshot.study.spec.as_mut().unwrap().fixed.insert("node3.skip".into(), "skip".into());
    let text = drawn(Picture::Theta, &snapshot);
    assert!(text.contains("node0.channels: mean 160.00, deviation 21.33, of 64 to 256"), "{text}");
    assert!(text.contains("node0.input = image: 1.000, fixed"), "{text}");
    assert!(text.contains("node3.skip = skip: "), "{text}");
    assert_eq!(text.matches(", fixed<").count(), 1 + 2, "one by itself, two choices by the spec");
}

#[test]
fn thousands_of_choices_and_of_variables_make_pictures_that_can_be_sent() {
    let choices: Vec<String> = (0..4096).map(|i| format!("choice{i}")).collect();
    let choices: Vec<&str> = choices.iter().map(String::as_str).collect();
    let one = drawn(Picture::Theta, &snapshot(vec![categorical("op", &choices)]));
    assert!(one.len() < 50_000, "{}", one.len());
    assert!(one.contains("op = choice0 to choice63: "), "{one}");
    let many: Vec<Variable> =
        (0..4096).map(|i| categorical(&format!("v{i}"), &choices[..100])).collect();
    let snapshot = snapshot(many);
    let text = page(&snapshot);
    assert!(text.len() < 3_000_000, "{}", text.len());
    assert!(text.contains("256 of 4096 variables"));
}

#[test]
fn one_variable_is_a_distribution_and_no_graph() {
    let snapshot = snapshot(vec![categorical("op", &["a", "b"])]);
    let text = drawn(Picture::Theta, &snapshot);
    assert!(text.contains("op = b: "), "{text}");
    let error = svg(Picture::Architecture, &snapshot).unwrap_err().to_string();
    assert!(error.contains("NODE.input"), "{error}");
}

#[test]
fn hostile_names_stay_words() {
    let evil = "<script>alert(\"&'\")</script>\u{0}\u{8}";
    let mut snapshot = snapshot(vec![
        categorical(&format!("{evil}.n.input"), &[evil, "b"]),
        categorical(&format!("{evil}.n.op"), &[evil, "]]>"]),
        integer(evil, 0, 9),
    ]);
    snapshot.study.name = evil.into();
    snapshot.study.fronts[0].cost = evil.into();
    snapshot.trainers[0].trainer_id = evil.into();
    snapshot.reports[0].trainer_id = evil.into();
    snapshot.trace[3].metrics.insert(evil.into(), 1.0);
    for picture in PICTURES {
        assert!(!drawn(picture, &snapshot).contains("<script"), "{picture:?}");
    }
    // HTML takes what XML does not.
    let text: String =
        sections(&snapshot).into_iter().map(|section| section.body.into_string()).collect();
    let document = format!("<div>{}</div>", text.replace(['\u{0}', '\u{8}'], ""));
    Document::parse(&document).unwrap();
    assert!(text.contains("&lt;script&gt;") && !text.contains("<script"));
    assert!(!super::document(evil, &html! {}).contains("<script"));
}

#[test]
fn what_is_not_finite_is_left_out() {
    let mut snapshot = snapshot(enas_micro());
    let strange = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e308, -1e308, 0.0, 5e-324];
    for (i, value) in strange.into_iter().enumerate() {
        let point = &mut snapshot.trace[3 * i];
        (point.convergence, point.entropy, point.delta) = (value, value, value);
        point.signal_to_noise = value;
        point.losses = Some(LossBand { low: value, median: value, high: value });
        point.metrics.insert("strange".into(), value);
        snapshot.reports[i].losses = vec![value];
        snapshot.study.fronts[0].points[i].loss = value;
    }
    snapshot.study.incumbent.as_mut().unwrap().loss = f64::NAN;
    snapshot.rate = Some(0.0);
    let everything = PICTURES.map(|picture| drawn(picture, &snapshot)).concat() + &page(&snapshot);
    for word in ["=\"NaN", "NaN,", "inf,", ",inf"] {
        assert!(!everything.contains(word), "{word}");
    }
    for point in &mut snapshot.trace {
        point.losses = None;
        point.delta = f64::NAN;
    }
    assert!(svg(Picture::Loss, &snapshot).is_err(), "all diverged");
    assert!(!drawn(Picture::Convergence, &snapshot).contains("Delta:"));
    for p in snapshot.distribution.iter_mut().flat_map(|d| &mut d.marginals) {
        p.kind = Some(marginal::Kind::Categorical(CategoricalMarginal {
            probabilities: vec![f64::NAN, 2.0],
        }));
    }
    assert!(!drawn(Picture::Theta, &snapshot).contains("=\"NaN"));
}

#[test]
fn curves_hold_every_point_also_a_single_or_constant_one() {
    let mut snapshot = snapshot(enas_micro());
    let text = drawn(Picture::Loss, &snapshot);
    let document = Document::parse(&text).unwrap();
    let points =
        |node: Node<'_, '_>| node.attribute("points").map_or(0, |p| p.split_whitespace().count());
    let longest = document.descendants().filter(|n| n.has_tag_name("polyline")).map(points).max();
    assert_eq!(longest, Some(snapshot.trace.len()));
    let band = document.descendants().filter(|n| n.has_tag_name("polygon")).map(points).max();
    assert_eq!(band, Some(2 * snapshot.trace.len()));
    assert!(text.contains("2 diverged"));

    snapshot.trace.truncate(1);
    assert!(drawn(Picture::Convergence, &snapshot).contains("<circle"));
    snapshot.trace = vec![snapshot.trace[0].clone(); 5];
    drawn(Picture::Convergence, &snapshot);
}

/// Gives a study a warm-up of this many steps, which rank nothing.
fn warm_up(snapshot: &mut StudySnapshot, warmup_steps: u64) {
    let algorithm = AlgorithmSettings { warmup_steps: Some(warmup_steps), ..Default::default() };
    snapshot.study.spec.as_mut().unwrap().algorithm = Some(algorithm);
    for point in snapshot.trace.iter_mut().filter(|point| point.applied <= warmup_steps) {
        point.losses = None;
    }
}

#[test]
fn the_warm_up_is_an_area_behind_every_chart_over_steps() {
    let mut snapshot = snapshot(enas_micro());
    let shaded = |snapshot: &StudySnapshot, of_picture: Picture| {
        let text = drawn(of_picture, snapshot);
        let document = Document::parse(&text).unwrap();
        let colour = maud::Render::render(&Ink::Grid).into_string();
        let is_area = |n: &Node<'_, '_>| {
            n.has_tag_name("rect")
                && n.attribute("fill") == Some(&*colour)
                && n.attribute("opacity") == Some("0.5")
        };
        let width = |n: Node<'_, '_>| n.attribute("width").unwrap().parse::<f64>().unwrap();
        let widths: Vec<f64> = document.descendants().filter(is_area).map(width).collect();
        assert_eq!(widths.len(), text.matches(">warm-up</text>").count());
        widths
    };
    assert!(shaded(&snapshot, Picture::Convergence).is_empty());
    warm_up(&mut snapshot, 5_000);
    let quarter = shaded(&snapshot, Picture::Convergence);
    assert_eq!(quarter.len(), 3);
    let losses = shaded(&snapshot, Picture::Loss);
    assert_eq!(losses.len(), 1, "from the first step, though losses begin later");
    assert!(drawn(Picture::Loss, &snapshot).contains("warm-up until 5000, median "));
    assert_eq!(page(&snapshot).matches(">warm-up</text>").count(), 3 + 1 + 2, "metrics as well");
    assert!(shaded(&snapshot, Picture::Front).is_empty());

    // While it lasts, the area ends where the search has come to.
    warm_up(&mut snapshot, 30_000);
    let whole = shaded(&snapshot, Picture::Convergence);
    assert!((whole[0] / quarter[0] - 4.0).abs() < 0.01, "{whole:?} {quarter:?}");
    let text = page(&snapshot);
    assert!(text.contains("<dt>warm-up</dt><dd>20000 of 30000 steps</dd>"), "{text}");
    assert!(!text.contains("Losses of ranked architectures") && text.contains(">train_loss<"));
    let error = svg(Picture::Loss, &snapshot).unwrap_err().to_string();
    assert!(error.contains("in its warm-up"), "{error}");
    drawn(Picture::Theta, &snapshot);
}

#[test]
fn what_is_far_from_every_curve_has_a_place_all_the_same() {
    let mut snapshot = snapshot(enas_micro());
    snapshot.trace.truncate(3);
    let last = snapshot.trace.last_mut().unwrap();
    (last.applied, last.losses, last.diverged, last.convergence) = (u64::MAX, None, 2, 1e90);
    drawn(Picture::Loss, &snapshot);
    drawn(Picture::Convergence, &snapshot);
}

#[test]
fn axes_are_logarithmic_where_values_are_far_apart() {
    let text = drawn(Picture::Convergence, &snapshot(enas_micro()));
    let document = Document::parse(&text).unwrap();
    let words: Vec<&str> = document
        .descendants()
        .filter(|n| n.has_tag_name("text"))
        .filter_map(|n| n.text())
        .map(str::trim)
        .collect();
    for word in ["1", "10", "100", "alpha", "entropy", "20k"] {
        assert!(words.contains(&word), "{word} in {words:?}");
    }
}

#[test]
fn cells_are_drawn_as_their_names_say() {
    let text = drawn(Picture::Architecture, &snapshot(enas_micro()));
    let document = Document::parse(&text).unwrap();
    let label = |node: Node<'_, '_>| node.attribute("aria-label").map(str::to_owned);
    let labels: Vec<String> = document.descendants().filter_map(label).collect();
    assert_eq!(labels.len(), 2);
    assert!(labels[0].starts_with("normal node0 is sep_conv_"), "{labels:?}");
    let said = |word: &str| count(&document, |n| n.has_tag_name("text") && n.text() == Some(word));
    assert_eq!((said("node4"), said("output"), said("cell[-1]")), (2, 2, 2));

    let text = drawn(Picture::Architecture, &snapshot(inpaint()));
    assert!(text.contains("kernel 3 · skip · channels 112"), "{text}");
    assert!(text.contains(">Not used: node0, node2, node5, node7<"), "{text}");
    assert!(!text.contains(">node0<") && text.contains(">node1<"), "{text}");
}

/// The first label of a panel in a picture.
fn label(document: &Document<'_>) -> String {
    let label = |node: Node<'_, '_>| node.attribute("aria-label").map(str::to_owned);
    document.descendants().find_map(label).unwrap()
}

#[test]
fn a_cell_of_edges_ends_with_its_last_node_and_leaves_out_none() {
    // node1.from0, node2.from0, node2.from1, node3.from0 to from2.
    let text = drawn(Picture::Architecture, &with_values(nasbench201(), vec![3, 0, 2, 1, 0, 4]));
    let document = Document::parse(&text).unwrap();
    assert_eq!(
        label(&document),
        "cell node1 is conv_3x3 of node0; node2 is conv_1x1 of node1; node3 is skip of node0, avg_pool_3x3 of node2"
    );
    let said = |word: &str| count(&document, |n| n.has_tag_name("text") && n.text() == Some(word));
    assert_eq!((said("node0"), said("node3"), said("output"), said("none")), (1, 1, 1, 0));
    // What the last node does not read, directly or not, is not drawn.
    let text = drawn(Picture::Architecture, &with_values(nasbench201(), vec![3, 0, 2, 1, 0, 0]));
    assert!(text.contains(">Not used: node1, node2<"), "{text}");
    let text = drawn(Picture::Architecture, &with_values(nasbench201(), vec![0; 6]));
    assert!(label(&Document::parse(&text).unwrap()).starts_with("cell node3 is nothing"), "{text}");
}

#[test]
fn a_chain_is_a_row_of_blocks_whose_words_do_not_touch() {
    let values = (0..27).map(|i| [2, 0, 1, 3][i % 4].min(2)).collect();
    let text = drawn(Picture::Architecture, &with_values(mobile(), values));
    let document = Document::parse(&text).unwrap();
    let label = label(&document);
    assert!(label.starts_with("stage0: mbconv_k5_e6_se0.25, skip, mbconv_k3_e3, "), "{label}");
    assert!(label.contains("; stage1 of 1280 channels: "), "{label}");
    let dashed = count(&document, |n| n.attribute("stroke-dasharray").is_some());
    assert_eq!((dashed, label.matches("skip").count()), (6, 6));
    // A letter is up to 5.5 wide; a word of a block runs along its height.
    let number = |node: &Node<'_, '_>, name| node.attribute(name).unwrap().parse::<f64>().unwrap();
    let texts = document.descendants().filter(|n| n.has_tag_name("text") && n.text().is_some());
    let (upright, turned): (Vec<_>, Vec<_>) =
        texts.partition(|node| node.attribute("transform").is_none());
    assert_eq!((upright.len(), turned.len()), (6 + 3, 24 + 2));
    let width = |node: &Node<'_, '_>| 5.5 * node.text().unwrap().chars().count() as f64;
    for line in ["stage", "ch"] {
        let mut ends: Vec<(f64, f64)> = upright
            .iter()
            .filter(|node| node.text().unwrap().contains(line))
            .map(|node| {
                (number(node, "x") - width(node) / 2.0, number(node, "x") + width(node) / 2.0)
            })
            .collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ends:?}");
    }
    let mut middles: Vec<f64> = turned.iter().map(|node| number(node, "x")).collect();
    middles.sort_by(f64::total_cmp);
    assert!(middles.windows(2).all(|pair| pair[1] - pair[0] >= 18.0), "{middles:?}");
    let tall = document
        .descendants()
        .filter(|n| n.has_tag_name("rect") && n.attribute("width") == Some("18"))
        .map(|node| number(&node, "height"))
        .fold(f64::INFINITY, f64::min);
    assert!(turned.iter().all(|node| width(node) < tall));
}

#[test]
fn a_circle_of_nodes_is_no_cell() {
    let circle = vec![
        categorical("a.input", &["b"]),
        categorical("b.input", &["a"]),
        categorical("output.input", &["a"]),
    ];
    assert!(svg(Picture::Architecture, &snapshot(circle)).is_err());
    assert!(svg(Picture::Architecture, &snapshot(vec![categorical("a.input", &["a"])])).is_err());
}

#[test]
fn a_front_has_its_points_limit_and_what_was_chosen() {
    let text = drawn(Picture::Front, &snapshot(enas_micro()));
    let document = Document::parse(&text).unwrap();
    let dots = count(&document, |n| n.has_tag_name("circle"));
    assert_eq!(
        dots,
        9 + 2 * 30 - 1 + 1,
        "the front, the latest reports but one that diverged, the ring"
    );
    assert!(text.contains(">limit<") && text.contains(">chosen<"), "{text}");
}

#[test]
fn tables_have_a_row_for_each_trainer_and_the_latest_reports() {
    let text = page(&snapshot(enas_micro()));
    let document = Document::parse(&text).unwrap();
    let section = |id| document.descendants().find(|n| n.attribute("id") == Some(id)).unwrap();
    let rows = |id| section(id).descendants().filter(|n| n.has_tag_name("tr")).count();
    assert_eq!((rows("trainers"), rows("reports")), (1 + 2, 1 + 20));
    assert!(text.contains("1.5000, diverged"), "{text}");
    assert!(text.contains("50 s ago") && text.contains("step 20001"), "{text}");
    assert!(text.contains("20000 of 39000 (51.3 %)") && text.contains("48 min 43 s"), "{text}");
}

#[test]
fn colours_are_the_style_sheet_s_and_nothing_is_styled_in_place() {
    for ink in Ink::ALL {
        let colour = maud::Render::render(&ink).into_string();
        for attribute in ["fill", "stroke"] {
            assert!(
                STYLE.contains(&format!("svg [{attribute}=\"{colour}\"]")),
                "{attribute} {colour}"
            );
        }
    }
    let known: Vec<String> = Ink::ALL.map(|ink| maud::Render::render(&ink).into_string()).into();
    let text = page(&snapshot(enas_micro())) + &page(&snapshot(inpaint()));
    let document = format!("<div>{text}</div>");
    let document = Document::parse(&document).unwrap();
    for node in document.descendants() {
        assert_eq!(node.attribute("style"), None, "{node:?}");
        for colour in ["fill", "stroke"].into_iter().filter_map(|name| node.attribute(name)) {
            assert!(colour == "none" || known.iter().any(|known| known == colour), "{node:?}");
        }
    }
    assert!(!text.contains("<script") && !text.contains("href"));
}

#[test]
fn a_document_has_its_style_inside_and_asks_for_nothing() {
    let text = document("a & b", &html! { p { "x" } });
    assert!(text.contains("<title>a &amp; b</title>") && text.contains("--surface"), "{text}");
    for word in ["src=", "href=", "url(", "@import", "http:"] {
        assert!(!text.contains(word), "{word}");
    }
}
