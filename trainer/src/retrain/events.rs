//! The rows of the log as TensorBoard reads them: records of TFRecord with messages of TensorFlow's `event.proto` and
//! `summary.proto`, of which only what scalars need is here.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use prost::Message;

use super::log::Row;

/// The prefix of the names of event files.
const PREFIX: &str = "events.out.tfevents.";

/// Bytes of a record before and after its content: length and its checksum, checksum of the content.
const HEAD: usize = 12;
const TAIL: usize = 4;

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// The file, open to be written to.
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Opens the event file in `directory`, and takes back what it has beyond `iterations`.
    pub(super) fn open(directory: &Path, iterations: u64) -> anyhow::Result<Events> {
        let path =
            path(directory).with_context(|| format!("cannot read {}", directory.display()))?;
        let open = || -> io::Result<Events> {
            let mut file =
                OpenOptions::new().create(true).write(true).truncate(false).open(&path)?;
            let kept = kept(&fs::read(&path)?, iterations);
            file.set_len(kept)?;
            file.seek(SeekFrom::End(0))?;
            let mut events = Events { path: path.clone(), file };
            if kept == 0 {
                let file_version = Some("brain.Event:2".to_owned());
                events.append(&Event { wall_time: now(), file_version, ..Event::default() })?;
            }
            Ok(events)
        };
        open().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Adds the metrics of a row; the step is its iteration.
    pub(super) fn write(&mut self, row: &Row) -> anyhow::Result<()> {
        let rest = [("epoch", row.epoch), ("learning_rate", row.learning_rate)];
        let scalar =
            |(tag, value): (&str, f64)| Scalar { tag: tag.to_owned(), simple_value: value as f32 };
        let metrics = row.metrics.iter().map(|(name, metric)| (&**name, *metric));
        let summary =
            Some(Summary { value: rest.into_iter().chain(metrics).map(scalar).collect() });
        let step = row.iteration.cast_signed();
        let event = Event { wall_time: now(), step, summary, ..Event::default() };
        self.append(&event).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn append(&mut self, event: &Event) -> io::Result<()> {
        let content = event.encode_to_vec();
        let length = (content.len() as u64).to_le_bytes();
        let parts = [&length[..], &checksum(&length), &content, &checksum(&content)];
        self.file.write_all(&parts.concat())?;
        self.file.sync_data()
    }
}

/// The event file that is there, or a new one's name.
fn path(directory: &Path) -> io::Result<PathBuf> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            return Ok(entry.path());
        }
    }
    Ok(directory.join(format!("{PREFIX}{:.0}.asng-trainer", now().floor())))
}

/// Returns the number of bytes from the start that are whole records up to that iteration.
fn kept(bytes: &[u8], iterations: u64) -> u64 {
    let mut kept = 0;
    while let Some((event, length)) = record(&bytes[kept..])
        && event.step <= iterations.cast_signed()
    {
        kept += length;
    }
    kept as u64
}

/// The first record, and its length with head and tail.
fn record(bytes: &[u8]) -> Option<(Event, usize)> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let (length, sum) = head.split_first_chunk::<8>()?;
    if *sum != checksum(length) {
        return None;
    }
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (content, rest) = rest.split_at_checked(length)?;
    if *rest.get(..TAIL)? != checksum(content) {
        return None;
    }
    Some((Event::decode(content).ok()?, HEAD + length + TAIL))
}

/// TFRecord's masked CRC-32C.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn now() -> f64 {
    // A clock before 1970 is shown as 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn row(iteration: u64) -> Row {
        let metrics = vec![("train_loss".into(), 0.5 * iteration as f64)];
        Row { iteration, epoch: 0.25, learning_rate: 0.1, metrics, seconds: 1.0 }
    }

    fn steps(directory: &Path) -> Vec<i64> {
        let bytes = fs::read(path(directory).unwrap()).unwrap();
        let mut rest = &bytes[..];
        let mut steps = Vec::new();
        while let Some((event, length)) = record(rest) {
            steps.push(event.step);
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        steps
    }

    #[test]
    fn events_beyond_the_checkpoint_and_torn_ones_are_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut events = Events::open(directory.path(), 0).unwrap();
        events.write(&row(8)).unwrap();
        events.write(&row(16)).unwrap();
        assert_eq!(steps(directory.path()), [0, 8, 16]);
        events.file.write_all(&[7; 30]).unwrap();
        Events::open(directory.path(), 16).unwrap().write(&row(24)).unwrap();
        assert_eq!(steps(directory.path()), [0, 8, 16, 24]);
        Events::open(directory.path(), 10).unwrap().write(&row(16)).unwrap();
        assert_eq!(steps(directory.path()), [0, 8, 16]);
    }

    /// The check value of TensorFlow's `crc32c_test.cc`: 32 zeros have the CRC 0x8a9136aa.
    #[test]
    fn the_checksum_is_tfrecord_s() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let masked = 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(checksum(&[0; 32]), masked.to_le_bytes());
    }

    #[test]
    fn tensorboard_reads_them() {
        let python = |script: &str, directory: &Path| {
            Command::new("python3").args(["-c", script]).arg(directory).output()
        };
        let script = "\
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
";
        let directory = tempfile::tempdir().unwrap();
        if !python(script, directory.path()).is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: python3 has no tensorboard");
            return;
        }
        let mut events = Events::open(directory.path(), 0).unwrap();
        events.write(&row(8)).unwrap();
        events.write(&row(16)).unwrap();
        let script = format!(
            "{script}
events = EventAccumulator(sys.argv[1]).Reload()
print([(event.step, event.value) for event in events.Scalars('train_loss')])
"
        );
        let output = python(&script, directory.path()).unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.trim(), "[(8, 4.0), (16, 8.0)]", "{output:?}");
    }
}
