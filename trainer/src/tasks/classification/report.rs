//! Quality of a classifier on labelled images: accuracy, precision, confusion matrix and the most confident errors, as JSON and as a page.
//! Pure: logits, labels and pixels are plain values.
//!
//! The predicted class is the one with the largest logit, the first of equal ones. An image with a logit that is NaN counts as wrong and as
//! undecided: it has no predicted class and does not appear in the confusion matrix.

use std::cmp::Reverse;

use data_encoding::BASE64;
use image::{ImageFormat, RgbImage};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::{Serialize, Serializer};

/// The number of wrong images that are kept as examples.
const MAX_EXAMPLES: usize = 24;
/// The number of them with the same true and the same predicted class.
const MAX_PER_PAIR: usize = 3;
/// The number of rows in the page's list of confused classes.
const MAX_CONFUSED: usize = 10;
/// The number of classes beyond which the page leaves out the confusion matrix, whose cells would be megabytes.
const MAX_MATRIX: usize = 200;

/// Collects the predictions of a classifier and computes their quality. Serializes as top1, top5, images, undecided, classes (name, images,
/// accuracy, precision) and confusion (rows are true classes, columns are predicted ones); a share of no images is null.
#[derive(Clone, Debug)]
pub struct Report {
    classes: Vec<String>,
    confusion: Vec<Vec<u64>>,
    /// Images of each class whose logits contain NaN.
    undecided: Vec<u64>,
    /// Images whose label is among the five largest logits.
    in_top5: u64,
    /// Most confident first; equal ones in the order in which they were added.
    examples: Vec<Example>,
}

/// A wrongly classified image.
#[derive(Clone, Debug)]
struct Example {
    label: usize,
    predicted: usize,
    /// Softmax probability of the predicted class.
    probability: f64,
    /// Height, width and RGB bytes.
    pixels: (u32, u32, Vec<u8>),
}

/// Quality on one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Class<'a> {
    /// Name of the class.
    pub name: &'a str,
    /// The number of images of the class.
    pub images: u64,
    /// The share of these images that are classified correctly (recall); `None` without images.
    pub accuracy: Option<f64>,
    /// The share of correct images among those that are classified as this class; `None` if there are none.
    pub precision: Option<f64>,
}

impl Report {
    /// Makes an empty report for these classes, in the order of their labels.
    pub fn new(classes: &[String]) -> Report {
        let count = classes.len();
        Report {
            classes: classes.to_vec(),
            confusion: vec![vec![0; count]; count],
            undecided: vec![0; count],
            in_top5: 0,
            examples: Vec::new(),
        }
    }

    /// Adds an image with its label and its logits, one for each class. `pixels` returns height, width and RGB bytes, and is called only if
    /// the image is kept as an example: the 24 most confident errors are, but only 3 with the same true and the same predicted class.
    ///
    /// # Panics
    ///
    /// If the label is no class, or the number of logits is not that of the classes.
    pub fn add(
        &mut self,
        label: usize,
        logits: &[f32],
        pixels: impl FnOnce() -> (u32, u32, Vec<u8>),
    ) {
        let count = self.classes.len();
        assert_eq!(logits.len(), count, "logits for {count} classes");
        assert!(label < count, "label {label} of {count} classes");
        if logits.iter().any(|logit| logit.is_nan()) {
            self.undecided[label] += 1;
            return;
        }
        // The place of a class among the logits in descending order; of equal logits the first class leads.
        let place = |class: usize| {
            let before = |(other, &logit): (usize, &f32)| {
                logit > logits[class] || logit == logits[class] && other < class
            };
            logits.iter().enumerate().filter(|&other| before(other)).count()
        };
        let predicted = (0..count).fold(0, |a, b| if logits[b] > logits[a] { b } else { a });
        self.confusion[label][predicted] += 1;
        self.in_top5 += u64::from(place(label) < 5);
        if predicted != label {
            self.keep(label, predicted, probability(logits, predicted), pixels);
        }
    }

    fn keep(
        &mut self,
        label: usize,
        predicted: usize,
        probability: f64,
        pixels: impl FnOnce() -> (u32, u32, Vec<u8>),
    ) {
        let same = |example: &Example| (example.label, example.predicted) == (label, predicted);
        let pair: Vec<_> = (0..self.examples.len()).filter(|&i| same(&self.examples[i])).collect();
        // The least confident example that has to make room.
        let last = match (pair.len(), self.examples.len()) {
            (MAX_PER_PAIR.., _) => pair.last().copied(),
            (_, MAX_EXAMPLES..) => self.examples.len().checked_sub(1),
            _ => None,
        };
        if let Some(last) = last {
            if self.examples[last].probability >= probability {
                return;
            }
            self.examples.remove(last);
        }
        let place = self.examples.partition_point(|other| other.probability >= probability);
        let example = Example { label, predicted, probability, pixels: pixels() };
        self.examples.insert(place, example);
    }

    /// Returns the number of images.
    pub fn images(&self) -> u64 {
        self.confusion.iter().flatten().chain(&self.undecided).sum()
    }

    /// Returns the share of images that are classified correctly; NaN without images.
    pub fn top1(&self) -> f64 {
        let correct: u64 = (0..self.classes.len()).map(|class| self.confusion[class][class]).sum();
        correct as f64 / self.images() as f64
    }

    /// Returns the share of images whose label is among the 5 largest logits, which is all decided images if there are at most 5 classes;
    /// NaN without images.
    pub fn top5(&self) -> f64 {
        self.in_top5 as f64 / self.images() as f64
    }

    /// Returns the number of images of each true class (row) and predicted class (column), without the undecided ones.
    pub fn confusion(&self) -> &[Vec<u64>] {
        &self.confusion
    }

    /// Returns the quality on each class.
    pub fn classes<'a>(&'a self) -> Vec<Class<'a>> {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let class = |(class, name): (usize, &'a String)| {
            let correct = self.confusion[class][class];
            let images = self.images_of(class);
            let predicted = self.confusion.iter().map(|row| row[class]).sum();
            let (accuracy, precision) = (share(correct, images), share(correct, predicted));
            Class { name, images, accuracy, precision }
        };
        self.classes.iter().enumerate().map(class).collect()
    }

    /// Returns a self-contained page: scores, `facts` (names and values), classes, confusion matrix and examples of errors.
    pub fn html(&self, title: &str, facts: &[(String, String)]) -> String {
        let undecided: u64 = self.undecided.iter().sum();
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (title) }
                    style { (PreEscaped(include_str!("report.css"))) }
                }
                body {
                    h1 { (title) }
                    div.scores {
                        div { b { (percent(Some(self.top1()))) } "Top-1 accuracy" }
                        @if self.classes.len() > 5 { div { b { (percent(Some(self.top5()))) } "Top-5 accuracy" } }
                        div { b { (self.images()) } "Images" }
                        @if undecided > 0 { div { b { (undecided) } "Without a prediction: logits are NaN" } }
                    }
                    dl { @for (name, value) in facts { dt { (name) } dd { (value) } } }
                    (self.confused())
                    (self.matrix())
                    (self.errors())
                    h2 { "Classes" }
                    table {
                        thead { tr { th.text scope="col" { "Class" } th scope="col" { "Images" } th scope="col" { "Accuracy" } th scope="col" { "Precision" } } }
                        tbody {
                            @for class in self.classes() {
                                tr { th scope="row" { (class.name) } td { (class.images) } td { (percent(class.accuracy)) } td { (percent(class.precision)) } }
                            }
                        }
                    }
                }
            }
        }
        .into_string()
    }

    /// Returns the list of the most frequently confused classes, empty without errors.
    fn confused(&self) -> Markup {
        let cells =
            (0..self.classes.len()).flat_map(|t| (0..self.classes.len()).map(move |p| (t, p)));
        let count = |&(t, p): &(usize, usize)| self.confusion[t][p];
        let mut pairs: Vec<_> = cells.filter(|pair| pair.0 != pair.1 && count(pair) > 0).collect();
        pairs.sort_by_key(|pair| Reverse(count(pair)));
        pairs.truncate(MAX_CONFUSED);
        html! {
            @if !pairs.is_empty() {
                h2 { "Most frequent errors" }
                table {
                    thead { tr { th.text scope="col" { "True class" } th.text scope="col" { "Predicted class" } th scope="col" { "Images" } th scope="col" { "Share of the true class" } } }
                    tbody {
                        @for pair in &pairs {
                            tr {
                                th scope="row" { (self.classes[pair.0]) } th scope="row" { (self.classes[pair.1]) }
                                td { (count(pair)) } td { (percent(Some(self.share(pair.0, pair.1)))) }
                            }
                        }
                    }
                }
            }
        }
    }

    fn matrix(&self) -> Markup {
        let count = self.classes.len();
        html! {
            h2 { "Confusion matrix" }
            @if count > MAX_MATRIX {
                p { "Left out of this page because there are " (count) " classes; the JSON output contains it." }
            } @else {
                p { "Images of each true class (row) by predicted class (column). The stronger the colour of a cell, the larger its share of the row." }
                div.scroll {
                    table.matrix {
                        thead { tr { th.text { "True class" } @for name in &self.classes { th scope="col" title=(name) { span { (name) } } } } }
                        tbody {
                            @for (row, name) in self.classes.iter().enumerate() {
                                tr {
                                    th scope="row" title=(name) { (name) }
                                    @for (column, other) in self.classes.iter().enumerate() { (self.cell(row, column, name, other)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn cell(&self, row: usize, column: usize, name: &str, other: &str) -> Markup {
        let (images, share) = (self.confusion[row][column], self.share(row, column));
        // The root makes errors of a few percent visible.
        let strength = format!("--strength:{:.3}", share.sqrt());
        html! {
            @if images == 0 { td {} } @else {
                td class=(if row == column { "right" } else { "wrong" }) style=(strength)
                    title={ (name) " classified as " (other) ": " (percent(Some(share))) } { (images) }
            }
        }
    }

    fn images_of(&self, class: usize) -> u64 {
        self.confusion[class].iter().sum::<u64>() + self.undecided[class]
    }

    /// Returns the share of the images of class `row` that are classified as class `column`.
    fn share(&self, row: usize, column: usize) -> f64 {
        self.confusion[row][column] as f64 / self.images_of(row) as f64
    }

    fn errors(&self) -> Markup {
        html! {
            @if !self.examples.is_empty() {
                h2 { "Most confident errors" }
                div.examples {
                    @for Example { label, predicted, probability, pixels } in &self.examples {
                        figure {
                            @if let Some(url) = data_url(pixels) { img src=(url) alt={ "An image of class " (self.classes[*label]) }; }
                            figcaption {
                                "predicted: " b { (self.classes[*predicted]) } " (" (percent(Some(*probability))) ")" br;
                                "true: " b { (self.classes[*label]) }
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Json<'a> {
            top1: f64,
            top5: f64,
            images: u64,
            undecided: u64,
            classes: Vec<Class<'a>>,
            confusion: &'a [Vec<u64>],
        }
        let json = Json {
            top1: self.top1(),
            top5: self.top5(),
            images: self.images(),
            undecided: self.undecided.iter().sum(),
            classes: self.classes(),
            confusion: &self.confusion,
        };
        json.serialize(serializer)
    }
}

/// Returns the softmax probability of the class with the largest logit. Infinite logits that are equal share the probability.
fn probability(logits: &[f32], largest: usize) -> f64 {
    let largest = f64::from(logits[largest]);
    let weight = |&logit: &f32| {
        let logit = f64::from(logit);
        if logit == largest { 1.0 } else { (logit - largest).exp() }
    };
    1.0 / logits.iter().map(weight).sum::<f64>()
}

fn percent(share: Option<f64>) -> String {
    match share {
        Some(share) if share.is_finite() => format!("{:.1}%", 100.0 * share),
        _ => "–".into(),
    }
}

/// Returns an image as a PNG in a data URL, or `None` if the pixels do not fit the size.
fn data_url((height, width, pixels): &(u32, u32, Vec<u8>)) -> Option<String> {
    let image = RgbImage::from_raw(*width, *height, pixels.clone())?;
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).ok()?;
    Some(format!("data:image/png;base64,{}", BASE64.encode(png.get_ref())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report(classes: &[&str]) -> Report {
        Report::new(&classes.iter().copied().map(String::from).collect::<Vec<_>>())
    }

    fn none() -> (u32, u32, Vec<u8>) {
        (1, 1, vec![0; 3])
    }

    /// The example in the documentation of scikit-learn's `confusion_matrix`; recall and precision as `recall_score` and `precision_score`
    /// with `average=None` define them.
    #[test]
    fn shares_are_those_of_scikit_learn() {
        let mut report = report(&["ant", "bird", "cat"]);
        for (label, predicted) in [2, 0, 2, 2, 0, 1].into_iter().zip([0, 0, 2, 2, 0, 2]) {
            let mut logits = [0.0; 3];
            logits[predicted] = 1.0;
            report.add(label, &logits, none);
        }
        assert_eq!(report.confusion(), [vec![2, 0, 0], vec![0, 0, 1], vec![1, 0, 2]]);
        assert_eq!((report.images(), report.top1(), report.top5()), (6, 4.0 / 6.0, 1.0));
        let quality = |class: &Class| (class.images, class.accuracy, class.precision);
        let classes: Vec<_> = report.classes().iter().map(quality).collect();
        let third = 2.0 / 3.0;
        let expected =
            [(2, Some(1.0), Some(third)), (1, Some(0.0), None), (3, Some(third), Some(third))];
        assert_eq!(classes, expected);
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"top1":0.6666666666666666,"top5":1.0,"images":6,"undecided":0,"classes":[{"name":"ant","images":2,"accuracy":1.0,"#
                .to_owned()
                + r#""precision":0.6666666666666666},{"name":"bird","images":1,"accuracy":0.0,"precision":null},{"name":"cat","images":3,"#
                + r#""accuracy":0.6666666666666666,"precision":0.6666666666666666}],"confusion":[[2,0,0],[0,0,1],[1,0,2]]}"#
        );
    }

    #[test]
    fn ties_go_to_the_first_class_and_nan_is_wrong() {
        let mut report = report(&["a", "b", "c", "d", "e", "f", "g"]);
        let equal = [1.0; 7];
        report.add(0, &equal, none); // right
        report.add(4, &equal, none); // fifth
        report.add(5, &equal, none); // sixth
        let mut logits = [3.0, 9.0, 5.0, 6.0, 7.0, 4.0, 2.0];
        report.add(5, &logits, none); // fifth
        report.add(0, &logits, none); // sixth
        logits[1] = f32::INFINITY;
        report.add(1, &logits, none); // right
        assert_eq!((report.images(), report.top1(), report.top5()), (6, 2.0 / 6.0, 4.0 / 6.0));
        logits[6] = f32::NAN;
        report.add(1, &logits, none);
        assert_eq!((report.images(), report.top1(), report.top5()), (7, 2.0 / 7.0, 4.0 / 7.0));
        assert_eq!(report.classes()[1].accuracy, Some(0.5));
        assert!(report.html("t", &[]).contains("<b>1</b>Without a prediction"));
    }

    #[test]
    fn probabilities_are_softmax_and_defined_for_infinite_logits() {
        let [a, b] = [1.0_f32, -2.0];
        let expected = 1.0 / (1.0 + (-3.0_f64).exp());
        assert!((probability(&[a, b], 0) - expected).abs() < 1e-15);
        let infinite = f32::INFINITY;
        assert_eq!(probability(&[infinite, 0.0, infinite], 0), 0.5);
        assert_eq!(probability(&[-infinite; 4], 0), 0.25);
        assert_eq!(probability(&[1e30, -1e30], 0), 1.0);
    }

    #[test]
    fn without_images_shares_are_null_and_the_page_has_dashes() {
        let report = report(&["a", "b"]);
        assert_eq!(serde_json::json!(report)["top1"], serde_json::Value::Null);
        let page = report.html("Empty", &[]);
        assert!(page.contains("<b>–</b>Top-1 accuracy") && !page.contains("NaN"), "{page}");
    }

    #[test]
    fn the_page_escapes_names_and_embeds_the_wrong_images() {
        let mut report = report(&["<script>alert(1)</script>", "a&b", "c\"d"]);
        let pixels: Vec<u8> = (0..2 * 3 * 3).map(|i| 10 * i).collect();
        report.add(0, &[0.0, 4.0, 1.0], || (2, 3, pixels.clone()));
        report.add(2, &[0.0, 0.0, 1.0], || unreachable!("a correct image is not kept"));
        report.add(1, &[0.0, 0.0, 1.0], || (7, 7, vec![1]));
        let page = report.html("<b>", &[("Weights".into(), "x<y".into())]);
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(1)"), "{page}");
        assert!(page.contains("<h1>&lt;b&gt;</h1>") && page.contains("<dd>x&lt;y</dd>"), "{page}");
        assert!(page.contains(r#"title="c&quot;d classified as c&quot;d: 100.0%""#), "{page}");
        assert!(page.contains("<b>a&amp;b</b> (93.6%)"), "1 / (1 + e^-4 + e^-3) = 0.9362");
        let urls: Vec<_> = page.split("data:image/png;base64,").skip(1).collect();
        let (url, _) = urls[0].split_once('"').unwrap();
        let image = image::load_from_memory(&BASE64.decode(url.as_bytes()).unwrap()).unwrap();
        assert_eq!((image.width(), image.height()), (3, 2));
        assert_eq!(image.into_rgb8().into_raw(), pixels);
        assert_eq!(urls.len(), 1, "pixels of another size are left out");
        assert!(!page.contains("http"), "nothing is loaded from elsewhere");
    }

    #[test]
    fn a_matrix_of_too_many_classes_is_left_out() {
        let many: Vec<_> = (0..=MAX_MATRIX).map(|i| format!("class {i}")).collect();
        assert!(Report::new(&many[1..]).html("t", &[]).contains("class=\"matrix\""));
        let page = Report::new(&many).html("t", &[]);
        assert!(!page.contains("class=\"matrix\"") && page.contains("there are 201 classes"));
    }

    proptest! {
        #[test]
        fn the_matrix_holds_every_image_and_the_examples_are_the_most_confident_errors(
            images in prop::collection::vec((0..4_usize, prop::array::uniform4(-3..4_i8), any::<bool>()), 0..200),
        ) {
            let mut report = report(&["a", "b", "c", "d"]);
            let (mut undecided, mut correct, mut wrong) = (0, 0, Vec::new());
            for (i, (label, logits, nan)) in images.iter().enumerate() {
                let mut logits = logits.map(f32::from);
                if *nan && i % 10 == 0 {
                    logits[i % 4] = f32::NAN;
                    undecided += 1;
                } else {
                    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
                    let predicted = logits.iter().position(|&logit| logit == largest).unwrap();
                    correct += u64::from(predicted == *label);
                    if predicted != *label {
                        wrong.push((i as u32, *label, predicted, probability(&logits, predicted)));
                    }
                }
                report.add(*label, &logits, || (i as u32, 0, Vec::new()));
            }
            let cells: u64 = report.confusion().iter().flatten().sum();
            prop_assert_eq!(cells + undecided, images.len() as u64);
            prop_assert_eq!(report.images(), images.len() as u64);
            if !images.is_empty() {
                prop_assert_eq!(report.top1(), correct as f64 / images.len() as f64);
                prop_assert_eq!(report.top5(), cells as f64 / images.len() as f64);
            }
            // A stable sort: of equally confident errors the earlier one leads.
            wrong.sort_by(|a, b| b.3.total_cmp(&a.3));
            let mut pairs = std::collections::BTreeMap::new();
            wrong.retain(|&(_, label, predicted, _)| {
                let count = pairs.entry((label, predicted)).or_insert(0);
                *count += 1;
                *count <= MAX_PER_PAIR
            });
            wrong.truncate(MAX_EXAMPLES);
            let kept: Vec<_> = report.examples.iter().map(|example| example.pixels.0).collect();
            prop_assert_eq!(kept, wrong.iter().map(|wrong| wrong.0).collect::<Vec<_>>());
        }
    }
}
