//! Errors of the engine.

use std::io;

use super::checkpoints;
use crate::{images, tasks, torch};

/// The reason why the engine cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The images cannot be read or prepared.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// The network cannot be computed, saved or loaded.
    #[error(transparent)]
    Torch(#[from] torch::Error),
    /// The values are no architecture of the study's space.
    #[error(transparent)]
    Architecture(#[from] tasks::NoArchitecture),
    /// The task's networks cannot read the images, or they are not those that the weights were trained on.
    #[error("{0}")]
    OtherImages(String),
    /// The study's checkpoints cannot be written or read.
    #[error(transparent)]
    Checkpoints(#[from] checkpoints::Error),
    /// The operating system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A step came before its study was opened, or another study is open now than the caller has seen.
    #[error("no study is open")]
    NotOpen,
    /// There are no such test images.
    #[error("{0}")]
    TestImages(String),
    /// The computation panicked: a fault of this program.
    #[error("a fault of this program ended the computation; its message is on standard error")]
    Panicked,
    /// The thread has ended, by a fault of this program.
    #[error("the engine's thread has died; its last message is on standard error")]
    Died,
}

impl Error {
    /// Returns whether nothing more can be computed in this process, whatever the study.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Error::Died | Error::Torch(torch::Error::Device(_)))
    }
}
