//! The gRPC contract between the controller, trainers and people. The sources are in `asng/v1/*.proto`; they carry the
//! documentation. Generated types stop at the edge of each program: nothing inside the controller or the trainer
//! computes with them.

/// Package `asng.v1`.
#[allow(missing_docs, clippy::large_enum_variant)]
pub mod v1 {
    tonic::include_proto!("asng.v1");
}

/// The encoded descriptors of `asng.v1`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/asng.v1.bin"));
