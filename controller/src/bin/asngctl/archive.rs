//! Studies in files: `StudyPart` messages, each with its length before it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    path::PathBuf,
};

use anyhow::{Context, bail, ensure};
use asng_proto::v1::{
    ExportStudyRequest, ImportStudyRequest, ListStudiesRequest, Study, StudyEnd, StudyPart,
    study_part::Part,
};
use indicatif::{ProgressBar, ProgressStyle};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    args::{ExportArgs, ImportArgs},
    client::{Controller, received},
    file::{self, Draft},
};

/// The result of an export.
pub(crate) struct Exported {
    pub(crate) file: PathBuf,
    pub(crate) reports: u64,
}

/// Writes a study to a file.
pub(crate) async fn export(
    controller: &mut Controller,
    ExportArgs { name, out, fork }: ExportArgs,
) -> anyhow::Result<Exported> {
    let file = out.unwrap_or_else(|| format!("{name}.asng").into());
    let mut draft = Draft::binary(&file)?;
    let mut parts = controller.export_study(ExportStudyRequest { name, fork }).await?.into_inner();
    let (bar, mut reports) = (bar("{pos}/{len} steps"), 0);
    while let Some(reply) = parts.message().await? {
        let part = reply.part.unwrap_or_default();
        draft
            .write_all(&part.encode_length_delimited_to_vec())
            .with_context(|| format!("cannot write {}", file.display()))?;
        match part.part {
            Some(Part::Archive(archive)) => bar.set_length(archive.sampled),
            Some(Part::Reports(batch)) => {
                reports += batch.reports.len() as u64;
                bar.set_position(reports);
            }
            Some(Part::End(StudyEnd { reports: all })) => {
                ensure!(reports == all, "{reports} reports of {all} arrived; try again");
                draft.finish()?;
                bar.finish_and_clear();
                return Ok(Exported { file, reports });
            }
            _ => {}
        }
    }
    bail!("the export was cut short; try again")
}

/// Creates a study from a file.
pub(crate) async fn import(
    controller: &mut Controller,
    ImportArgs { file, name }: ImportArgs,
) -> anyhow::Result<Study> {
    let failed = format!("cannot read {}", file::name(&file));
    let (content, size) = file::open(&file)?;
    let bar = bar(if size.is_some() { "{bytes}/{total_bytes}" } else { "{bytes}" });
    bar.set_length(size.unwrap_or_default());
    let mut content = BufReader::new(bar.wrap_read(content));
    let (sender, parts) = mpsc::channel(4);
    let reader = tokio::task::spawn_blocking(move || -> io::Result<()> {
        let mut name = name.unwrap_or_default();
        while let Some(part) = read_part(&mut content)? {
            let request = ImportStudyRequest { name, part: Some(part) };
            if sender.blocking_send(request).is_err() {
                // The controller has refused a part, and says why.
                break;
            }
            name = String::new();
        }
        Ok(())
    });
    // What streams is sent only once: first have the connection find a controller that answers.
    controller.list_studies(ListStudiesRequest { page_size: 1, ..Default::default() }).await?;
    let reply = controller.import_study(ReceiverStream::new(parts)).await;
    bar.finish_and_clear();
    // Without its closing part the controller keeps nothing of a file that cannot be read to its end.
    reader.await?.context(failed)?;
    Ok(received(reply?.into_inner().study)?)
}

/// Reads the next part, or `None` at the end of the file.
fn read_part(file: &mut impl BufRead) -> io::Result<Option<StudyPart>> {
    if file.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut length = 0_u64;
    for shift in (0..).step_by(7) {
        let mut byte = [0];
        file.read_exact(&mut byte)?;
        length |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            break;
        }
        if shift >= 56 {
            return Err(io::Error::other("not an exported study"));
        }
    }
    // Grows as the file yields, whatever length it claims.
    let mut bytes = Vec::new();
    if file.take(length).read_to_end(&mut bytes)? as u64 != length {
        return Err(io::Error::other("the file ends within a part"));
    }
    let part = StudyPart::decode(&bytes[..]);
    part.map(Some).map_err(|_| io::Error::other("not an exported study"))
}

/// A bar on stderr, if that is a terminal.
fn bar(figures: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{bar:30}} {figures}"));
    // Unwrap safety: the templates are constants.
    ProgressBar::new(0).with_style(style.unwrap())
}

#[cfg(test)]
mod tests {
    use asng_proto::v1::{Report, ReportBatch, StudyArchive};

    use super::*;

    fn parts() -> Vec<StudyPart> {
        let archive = StudyArchive { format: 1, theta: vec![7; 300], ..Default::default() };
        let reports = vec![Report::default(); 3];
        let parts = [
            Part::Archive(archive),
            Part::Reports(ReportBatch { reports }),
            Part::End(StudyEnd { reports: 3 }),
        ];
        parts.map(|part| StudyPart { part: Some(part) }).into()
    }

    fn file() -> Vec<u8> {
        parts().iter().flat_map(Message::encode_length_delimited_to_vec).collect()
    }

    fn read(mut bytes: &[u8]) -> io::Result<Vec<StudyPart>> {
        let mut parts = Vec::new();
        while let Some(part) = read_part(&mut bytes)? {
            parts.push(part);
        }
        Ok(parts)
    }

    #[test]
    fn what_is_written_can_be_read() {
        assert_eq!(read(&file()).unwrap(), parts());
    }

    #[test]
    fn a_file_that_was_cut_within_a_part_or_is_another_is_an_error() {
        let file = file();
        let whole: Vec<usize> =
            parts().iter().map(|p| p.encode_length_delimited_to_vec().len()).collect();
        let ends = [0, whole[0], whole[0] + whole[1], file.len()];
        for length in 0..=file.len() {
            assert_eq!(read(&file[..length]).is_ok(), ends.contains(&length), "{length}");
        }
        assert!(read(&[0xff; 99]).is_err());
        assert!(read(b"study,step,loss").is_err());
        // A length of many gigabytes, of which nothing follows.
        assert!(read(&[0xff, 0xff, 0xff, 0xff, 0x7f]).is_err());
    }
}
