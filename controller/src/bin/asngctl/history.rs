//! The history of a study, page by page, as CSV or lines of JSON.

use std::io::{self, Write};

use asng_proto::v1::{Draw, ListReportsRequest, Report, Variable};
use csv::{IntoInnerError, Writer};
use serde_json::{Value, json};

use crate::{
    args::{Format, HistoryArgs},
    client::{self, Controller},
    file::Draft,
    names,
};

/// Writes all of a history, in `format` unless another is asked for.
pub(crate) async fn write(
    controller: &mut Controller,
    HistoryArgs { name, format: asked, newest_first, out }: &HistoryArgs,
    format: Format,
) -> anyhow::Result<()> {
    let study = name.clone();
    let (page_size, newest_first) = (1000, *newest_first);
    let request = ListReportsRequest { study, page_size, newest_first, ..Default::default() };
    let mut draft = Draft::new(out)?;
    write_to(controller, request, asked.unwrap_or(format), &mut draft).await?;
    draft.finish()
}

async fn write_to(
    controller: &mut Controller,
    mut request: ListReportsRequest,
    format: Format,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let variables = client::study(controller, &request.study).await?.variables;
    if let Format::Csv = format {
        out.write_all(&csv([header(&variables)])?)?;
    }
    loop {
        let page = controller.list_reports(request.clone()).await?.into_inner();
        match format {
            Format::Csv => {
                let rows = page.reports.iter().flat_map(|report| rows(report, &variables));
                out.write_all(&csv(rows)?)?;
            }
            Format::Json => {
                for report in &page.reports {
                    writeln!(out, "{}", object(report, &variables))?;
                }
            }
        }
        if page.next_page_token.is_empty() {
            return Ok(out.flush()?);
        }
        request.page_token = page.next_page_token;
    }
}

fn csv(rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<Vec<u8>> {
    let mut writer = Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row)?;
    }
    writer.into_inner().map_err(IntoInnerError::into_error)
}

const COLUMNS: [&str; 12] = [
    "step",
    "generation",
    "outcome",
    "staleness",
    "update",
    "trainer",
    "time",
    "metrics",
    "use",
    "index",
    "loss",
    "costs",
];

/// The names of the columns, no two of them equal: a variable that is called as one of [`COLUMNS`], or whose name begins with
/// `variables.`, has the column `variables.NAME`.
fn header(variables: &[Variable]) -> Vec<String> {
    let of_variable = |Variable { name, .. }: &Variable| {
        let taken = COLUMNS.contains(&&**name) || name.starts_with("variables.");
        if taken { format!("variables.{name}") } else { name.clone() }
    };
    COLUMNS.into_iter().map(Into::into).chain(variables.iter().map(of_variable)).collect()
}

/// A row for each architecture of a step.
fn rows(report: &Report, variables: &[Variable]) -> Vec<Vec<String>> {
    let step = [
        report.step_id.to_string(),
        report.generation.to_string(),
        names::outcome(report).into(),
        report.staleness.to_string(),
        report.update.to_string(),
        report.trainer_id.clone(),
        report.report_time.map(|time| time.to_string()).unwrap_or_default(),
        json!(report.metrics).to_string(),
    ];
    let row = |usage: &str, index: usize, draw: &Draw| {
        let loss = report.losses.get(index).filter(|_| usage == "rank");
        let mut row = step.to_vec();
        row.extend([usage.into(), index.to_string()]);
        row.push(loss.map(ToString::to_string).unwrap_or_default());
        let costs = report.costs.get(index).filter(|_| usage == "rank");
        row.push(costs.map(|costs| json!(costs.figures).to_string()).unwrap_or_default());
        let values = names::architecture(draw, variables).values;
        row.extend(variables.iter().zip(values).map(|(variable, v)| names::choice(variable, v)));
        row
    };
    let train = report.train.iter().enumerate().map(|(i, draw)| row("train", i, draw));
    let rank = report.rank.iter().enumerate().map(|(i, draw)| row("rank", i, draw));
    train.chain(rank).collect()
}

fn object(report: &Report, variables: &[Variable]) -> Value {
    let architectures = |draws: &[Draw]| -> Value {
        let named = draws.iter().map(|draw| {
            let mut named =
                crate::json::architecture(&names::architecture(draw, variables), variables);
            named["draw"] = json!(draw.values);
            named
        });
        named.collect()
    };
    json!({
        "step_id": report.step_id,
        "generation": report.generation,
        "train": architectures(&report.train),
        "rank": architectures(&report.rank),
        "outcome": names::outcome(report),
        "losses": report.losses,
        "costs": report.costs.iter().map(|costs| json!(costs.figures)).collect::<Value>(),
        "metrics": report.metrics,
        "trainer_id": report.trainer_id,
        "staleness": report.staleness,
        "update": report.update,
        "report_time": report.report_time.map(|time| time.to_string()),
        "applied": report.applied,
    })
}

#[cfg(test)]
mod tests {
    use asng_proto::v1::{Costs, ReportOutcome};

    use super::*;
    use crate::names::tests::two_variables;

    fn a_report() -> Report {
        let draw = |op, width| Draw { values: vec![op, width] };
        Report {
            step_id: 4,
            generation: 3,
            train: vec![draw(0.0, 8.0)],
            rank: vec![draw(1.0, 71.3), draw(0.0, 36.5)],
            outcome: ReportOutcome::Applied.into(),
            losses: vec![0.5, f64::NAN],
            costs: vec![Costs { figures: [("size".to_string(), 3.0)].into() }, Costs::default()],
            metrics: [("train_loss".to_string(), 0.25)].into(),
            trainer_id: "a, b".into(),
            update: 4,
            ..Report::default()
        }
    }

    #[test]
    fn csv_has_a_row_for_each_architecture() {
        let variables = two_variables();
        let all = [header(&variables)].into_iter().chain(rows(&a_report(), &variables));
        let text = csv(all).unwrap();
        let step = r#"4,3,APPLIED,0,4,"a, b",,"{""train_loss"":0.25}""#;
        let expected = [
            "step,generation,outcome,staleness,update,trainer,time,metrics,use,index,loss,costs,op,width",
            &format!("{step},train,0,,,conv3,8"),
            &format!(r#"{step},rank,0,0.5,"{{""size"":3.0}}",conv5,64"#),
            &format!("{step},rank,1,NaN,{{}},conv3,37"),
            "",
        ];
        assert_eq!(String::from_utf8(text).unwrap(), expected.join("\n"));
    }

    #[test]
    fn no_two_columns_have_one_name() {
        let names = ["loss", "variables.loss", "trainer_id"];
        let variables = names.map(|name| Variable { name: name.into(), ..Variable::default() });
        let expected = ["variables.loss", "variables.variables.loss", "trainer_id"];
        assert_eq!(header(&variables)[COLUMNS.len()..], expected);
    }

    #[test]
    fn json_has_names_and_what_was_drawn() {
        let value = object(&a_report(), &two_variables());
        assert_eq!(value["rank"][0]["choices"], json!({ "op": "conv5", "width": 64 }));
        assert_eq!(value["rank"][0]["draw"], json!([1.0, 71.3]));
        assert_eq!(value["losses"], json!([0.5, null]));
        assert_eq!(value["costs"], json!([{ "size": 3.0 }, {}]));
        assert_eq!(value["outcome"], "APPLIED");
    }

    #[test]
    fn a_step_closed_unreported_has_no_loss() {
        let closed = Report { losses: vec![], outcome: 0, ..a_report() };
        let rows = rows(&closed, &two_variables());
        assert!(rows.iter().all(|row| (&*row[2], &*row[10]) == ("UNSPECIFIED", "")), "{rows:?}");
    }
}
