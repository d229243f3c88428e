//! How Rust programs reach the controllers of ASNG-NAS: one connection that finds the controller to ask, proves who it is,
//! and lives through failures.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`Options`] | what a person sets: addresses, TLS, token |
//! | [`url`] | the grammar of addresses |
//! | [`environment`] | command lines with their environment variables |
//! | [`Connection`] | the transport for every generated client: TLS, token, failover, trace context |
//! | [`insist`], [`insist_for`] | calls until there is an answer, or for a limited time |
//! | [`explain`] | an error in a person's words, with what to do |
//! | [`Prefetch`], [`Pace`] | how many steps a trainer leases ahead |
//! | [`preset`] | steps that go with a preset of the project's spaces |
//! | [`telemetry`] | logs and traces of a program |
//!
//! ```no_run
//! # async fn example(options: asng_client::Options) -> anyhow::Result<()> {
//! use asng_proto::v1::{ListStudiesRequest, study_service_client::StudyServiceClient};
//!
//! let mut studies = StudyServiceClient::new(options.connect()?);
//! let page = studies.list_studies(ListStudiesRequest::default()).await?;
//! # Ok(())
//! # }
//! ```

mod certificate;
mod connection;
pub mod environment;
mod explain;
mod insist;
mod options;
mod prefetch;
mod presets;
pub mod telemetry;
mod token;

pub use self::{
    connection::{Connection, REQUEST_TIMEOUT},
    explain::{explain, explain_trainer},
    insist::{insist, insist_for, is_transient},
    options::{CONTROLLER_PORT, Options, TRAINER_PORT, url},
    prefetch::{MAX_PREFETCH, Pace, Prefetch},
    presets::{Preset, preset},
};
