//! How programs reach the controller of ASNG-NAS, and how they tell what they do.

pub mod telemetry;
