//! Lists the image files of a directory with their classes, and decides which are held out for tests. Reads names only.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tracing::warn;

use super::error::{Error, Refused, content, unreadable};

const EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "png", "webp", "gif"];
/// One image, or folder, in so many is held out for tests.
const ONE_IN: usize = 10;
/// From so many folders on, whole folders are held out where classes do not matter.
const FOLDERS_TO_HOLD_OUT: usize = 10;

/// An image file, by its name.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) path: PathBuf,
    /// Relative to the directory of the data set.
    pub(super) name: String,
    pub(super) label: i64,
    pub(super) test: bool,
}

impl Listed {
    fn new(directory: &Path, path: PathBuf, label: i64, test: bool) -> Listed {
        Listed { name: relative(directory, &path), path, label, test }
    }
}

/// The image files of a data set, those of the training images first.
#[derive(Debug)]
pub(super) struct Listing {
    /// Names of the classes; none where classes do not matter.
    pub(super) classes: Vec<String>,
    pub(super) files: Vec<Listed>,
    /// Image files that lie where they have no class.
    pub(super) beside: Vec<Refused>,
}

/// Lists a directory that has a folder for each class, or `train` and `test` (or `val`) with such folders.
pub(super) fn with_classes(directory: &Path) -> Result<Listing, Error> {
    let (folders, loose) = entries(directory)?;
    let Split { train, test, unused } = Split::of(directory, &folders)?;
    if let Some(first) = unused.first() {
        warn!(first = %first.display(), folders = unused.len(), "folders beside train and test are not used");
    }
    let mut listing = Listing { classes: Vec::new(), files: Vec::new(), beside: Vec::new() };
    if train != directory {
        listing.leave_out(directory, loose);
    }
    let mut parts = Vec::new();
    for (part, test) in [(Some(train), false), (test, true)] {
        let Some(part) = part else { continue };
        let (folders, loose) = entries(&part)?;
        listing.leave_out(directory, loose);
        let names: Vec<String> = folders.iter().map(|folder| file_name(folder)).collect();
        if !test {
            listing.classes.clone_from(&names);
        }
        for (folder, name) in folders.iter().zip(&names) {
            let (_, paths) = entries(folder)?;
            if paths.is_empty() {
                let reason = "a class folder without images; put .jpg, .jpeg, .png, .webp or .gif files directly into it, or \
                    remove it";
                return Err(content(folder, reason));
            }
            // A class that only the tests have is refused below.
            let label =
                listing.classes.iter().position(|class| class == name).unwrap_or_default() as i64;
            listing
                .files
                .extend(paths.into_iter().map(|path| Listed::new(directory, path, label, test)));
        }
        parts.push((part, names));
    }
    listing.check(directory, &parts)?;
    if parts.len() == 1 {
        listing.hold_out_of_each_class();
    }
    Ok(listing)
}

/// Lists a directory whose images have no classes: they lie in it, in its folders, or in `train` and `test` (or `val`) likewise.
pub(super) fn without_classes(directory: &Path) -> Result<Listing, Error> {
    let (folders, _) = entries(directory)?;
    let Split { train, test, .. } = Split::of(directory, &folders)?;
    let mut files = Vec::new();
    for (part, test) in [(Some(&train), false), (test.as_ref(), true)] {
        let Some(part) = part else { continue };
        let (folders, mut paths) = entries(part)?;
        for folder in folders {
            paths.append(&mut entries(&folder)?.1);
        }
        files.extend(paths.into_iter().map(|path| Listed::new(directory, path, 0, test)));
    }
    if files.is_empty() {
        return Err(content(
            directory,
            "no .jpg, .jpeg, .png, .webp or .gif file in it or in its folders; `asng-trainer data fetch photos` brings some",
        ));
    }
    if test.is_none() {
        hold_out(&mut files);
    }
    Ok(Listing { classes: Vec::new(), files, beside: Vec::new() })
}

/// The places of the images for training and for tests.
struct Split {
    train: PathBuf,
    test: Option<PathBuf>,
    unused: Vec<PathBuf>,
}

impl Split {
    fn of(directory: &Path, folders: &[PathBuf]) -> Result<Split, Error> {
        let find = |name| folders.iter().find(|folder| folder.ends_with(name)).cloned();
        let test = find("test").or_else(|| find("val"));
        match find("train") {
            // Without the other, `train` may be a class: of trains.
            Some(train) if test.is_some() || !entries(&train)?.0.is_empty() => {
                let used = |folder: &&PathBuf| **folder != train && Some(*folder) != test.as_ref();
                let unused = folders.iter().filter(used).cloned().collect();
                Ok(Split { train, test, unused })
            }
            _ => Ok(Split { train: directory.into(), test: None, unused: Vec::new() }),
        }
    }
}

impl Listing {
    /// Leaves out image files that lie beside class folders.
    fn leave_out(&mut self, directory: &Path, files: Vec<PathBuf>) {
        if let Some(first) = files.first() {
            let first = first.display();
            warn!(%first, files = files.len(), "image files beside the class folders have no class and are left out");
        }
        let reason = "beside the class folders";
        let refused =
            |path: PathBuf| Refused { file: relative(directory, &path), reason: reason.into() };
        self.beside.extend(files.into_iter().map(refused));
    }

    fn check(&self, directory: &Path, parts: &[(PathBuf, Vec<String>)]) -> Result<(), Error> {
        let mut lower = HashMap::new();
        for (part, classes) in parts {
            for name in classes {
                let clash = lower.insert(name.to_lowercase(), name).filter(|other| *other != name);
                if let Some(other) = clash {
                    let reason = format!(
                        "differs from the class {other:?} in case only; rename or merge them"
                    );
                    return Err(content(&part.join(name), reason));
                }
            }
        }
        if let [(train, trained), (test, tested)] = parts {
            for (part, classes, other, others) in
                [(test, tested, train, trained), (train, trained, test, tested)]
            {
                if let Some(name) = classes.iter().find(|name| !others.contains(name)) {
                    let reason = format!(
                        "this class has no folder in {}; both need all classes",
                        other.display()
                    );
                    return Err(content(&part.join(name), reason));
                }
            }
        }
        match &self.classes[..] {
            [] => Err(content(
                directory,
                "no class folders; images need a folder for each class, or `train` and `test` with such folders",
            )),
            [class] => Err(content(
                directory,
                format!(
                    "only one class, {class:?}; classification needs two or more class folders"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Holds out a tenth of each class, rounded up, of those with two images or more: those whose names have the smallest SHA-256.
    fn hold_out_of_each_class(&mut self) {
        for class in self.files.chunk_by_mut(|a, b| a.label == b.label) {
            let mut digests: Vec<_> = class.iter().map(|file| Sha256::digest(&file.name)).collect();
            digests.sort_unstable();
            if class.len() > 1 {
                let last = digests[class.len().div_ceil(ONE_IN) - 1];
                class.iter_mut().for_each(|file| file.test = Sha256::digest(&file.name) <= last);
            }
        }
        self.files.sort_by_key(|file| file.test);
    }
}

/// Holds out a tenth, rounded up, and puts it after all others: of the folders where there are ten or more and all files lie in
/// one, since what lies in a folder often shows the same; otherwise of the files. Those are taken whose names have the smallest
/// SHA-256, so that they are the same on every machine.
fn hold_out(files: &mut [Listed]) {
    let folder = |file: &Listed| file.name.rsplit_once('/').map(|(folder, _)| folder.to_owned());
    let folders: HashSet<_> = files.iter().map(folder).collect();
    let by_folder = folders.len() >= FOLDERS_TO_HOLD_OUT && !folders.contains(&None);
    let digest = |file: &Listed| match folder(file) {
        Some(folder) if by_folder => Sha256::digest(folder),
        _ => Sha256::digest(&file.name),
    };
    let digests: BTreeSet<_> = files.iter().map(digest).collect();
    let last = digests.iter().nth(digests.len().div_ceil(ONE_IN) - 1);
    for file in files.iter_mut() {
        file.test = Some(&digest(file)) <= last;
    }
    files.sort_by_key(|file| file.test);
}

/// Returns the folders of a directory and its image files, by their extensions, each in the order of names. Hidden ones and what
/// macOS adds to archives are not looked at.
pub(super) fn entries(directory: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), Error> {
    let read = || -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        let (mut folders, mut files) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = file_name(&path);
            let extension = path.extension().map(OsStr::to_ascii_lowercase);
            if name.starts_with('.') || name == "__MACOSX" {
                continue;
            } else if path.is_dir() {
                folders.push(path);
            } else if extension.is_some_and(|found| EXTENSIONS.iter().any(|known| found == *known))
            {
                files.push(path);
            }
        }
        folders.sort();
        files.sort();
        Ok((folders, files))
    };
    read().map_err(unreadable(directory))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn relative(directory: &Path, path: &Path) -> String {
    path.strip_prefix(directory).unwrap_or(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// Makes a directory with empty files of these names.
    fn directory<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in names {
            let file = directory.path().join(name.as_ref());
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        directory
    }

    fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Listing {
        with_classes(directory(names).path()).unwrap()
    }

    fn complaint<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
        with_classes(directory(names).path()).unwrap_err().to_string()
    }

    fn names(listing: &Listing, test: bool) -> Vec<&str> {
        let part = listing.files.iter().filter(|file| file.test == test);
        part.map(|file| &file.name[..]).collect()
    }

    #[test]
    fn folders_are_classes_in_the_order_of_names_and_a_tenth_of_each_is_held_out() {
        let files =
            |class: &'static str, count| (0..count).map(move |i| format!("{class}/{i:02}.png"));
        let listing = listed(files("dogs", 25).chain(files("cats", 10)).chain(files("emus", 1)));
        assert_eq!(listing.classes, ["cats", "dogs", "emus"]);
        assert!(listing.files.is_sorted_by_key(|file| (file.test, file.label, &file.name)));
        let held_out: Vec<_> =
            listing.files.iter().filter(|file| file.test).map(|file| file.label).collect();
        assert_eq!(held_out, [0, 1, 1, 1]);
        // The smallest of: for i in $(seq 0 9); do echo -n cats/0$i.png | sha256sum; done
        assert_eq!(names(&listing, true)[0], "cats/03.png");
    }

    #[test]
    fn train_and_test_or_val_are_taken_as_they_are() {
        for test in ["test", "val"] {
            let files = ["train/b/1.png", "train/a/1.png", "train/a/2.gif"].map(str::to_owned);
            let tests = ["a/9.jpg", "b/9.webp"].map(|file| format!("{test}/{file}"));
            let listing = listed(files.iter().chain(&tests));
            assert_eq!(listing.classes, ["a", "b"]);
            assert_eq!(names(&listing, false), ["train/a/1.png", "train/a/2.gif", "train/b/1.png"]);
            assert_eq!(names(&listing, true), tests);
            let labels: Vec<_> = listing.files.iter().map(|file| file.label).collect();
            assert_eq!(labels, [0, 0, 1, 0, 1]);
        }
        let alone = listed(["train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png"]);
        assert_eq!((alone.classes.len(), names(&alone, true).len()), (2, 2));
    }

    #[test]
    fn train_may_be_a_class() {
        let listing = listed(["train/1.png", "plane/1.png", "plane/2.png"]);
        assert_eq!(listing.classes, ["plane", "train"]);
    }

    #[test]
    fn what_is_no_image_is_not_looked_at() {
        let listing = listed([
            "a/1.png",
            "a/._1.png",
            "a/.hidden.jpg",
            "a/Thumbs.db",
            "a/desktop.ini",
            "a/notes.txt",
            "a/dir.jpg/2.png",
            "b/1.JPG",
            ".ipynb_checkpoints/1.png",
            "__MACOSX/a/1.png",
            "README.md",
        ]);
        assert_eq!(listing.classes, ["a", "b"]);
        assert_eq!(names(&listing, false), ["a/1.png", "b/1.JPG"]);
        assert_eq!(listing.beside, []);
    }

    #[test]
    fn images_beside_class_folders_get_no_label() {
        let listing = listed(["a/1.png", "b/1.png", "loose.png"]);
        assert_eq!(listing.files.len(), 2);
        assert_eq!(listing.beside[0].to_string(), "loose.png: beside the class folders");
        let listing = listed(["train/a/1.png", "train/b/1.png", "train/x.png", "y.png"]);
        let beside: Vec<_> = listing.beside.iter().map(|refused| &refused.file[..]).collect();
        assert_eq!(beside, ["y.png", "train/x.png"]);
    }

    #[test]
    fn classes_that_cannot_be_learnt_are_named() {
        for (files, expected) in [
            (&["a/1.png", "b/notes.txt"][..], "b: a class folder without images; put .jpg"),
            (&["a/1.png"], ": only one class, \"a\"; classification needs two or more"),
            (&["1.png", ".a/1.png"], ": no class folders; images need a folder for each class"),
            (&["train/1.png", "test/1.png"], ": no class folders"),
            (
                &["Cat/1.png", "cat/1.png", "dog/1.png"],
                "cat: differs from the class \"Cat\" in case only",
            ),
            (
                &["train/a/1.png", "train/b/1.png", "test/A/1.png", "test/b/1.png"],
                "A: differs from the class \"a\"",
            ),
            (
                &[
                    "train/a/1.png",
                    "train/b/1.png",
                    "test/a/1.png",
                    "test/b/1.png",
                    "test/zebra/1.png",
                ],
                "test/zebra: this class has no folder in ",
            ),
            (
                &["train/a/1.png", "train/b/1.png", "test/a/1.png"],
                "train/b: this class has no folder in ",
            ),
        ] {
            let error = complaint(files);
            assert!(error.contains(expected), "{files:?}: {error}");
        }
    }

    /// The names of the files held out of those named.
    fn held_out(names: impl IntoIterator<Item = String>) -> Vec<String> {
        let directory = Path::new("photos");
        let listed = |name: String| Listed::new(directory, directory.join(name), 0, false);
        let mut files: Vec<Listed> = names.into_iter().map(listed).collect();
        hold_out(&mut files);
        assert!(files.is_sorted_by_key(|listed| listed.test));
        files.into_iter().filter(|file| file.test).map(|file| file.name).collect()
    }

    /// The same on every machine, and as long as there are results to compare with.
    #[test]
    fn without_classes_what_is_held_out_follows_from_the_names() {
        let flat = held_out((1..=40).map(|i| format!("{i:06}.jpg")));
        assert_eq!(flat, ["000005.jpg", "000018.jpg", "000023.jpg", "000034.jpg"]);
        assert_eq!(held_out(["one.png".to_owned()]), ["one.png"]);
    }

    #[test]
    fn without_classes_whole_folders_are_held_out_where_there_are_ten() {
        let names = |folders: usize| {
            (0..folders).flat_map(|folder| (0..20).map(move |i| format!("f{folder}/{i:02}.png")))
        };
        let two = |name: &String| name.starts_with("f8/") || name.starts_with("f9/");
        assert_eq!(held_out(names(12)), names(12).filter(two).collect::<Vec<_>>());
        assert_eq!(held_out(names(9)).len(), 18);
        let beside = names(12).chain(["beside.png".to_owned()]);
        assert_eq!(held_out(beside).len(), 25);
    }

    #[test]
    fn without_classes_images_may_lie_anywhere_and_a_split_is_kept() {
        let listing =
            without_classes(directory(["b.png", "a.jpg", "x/1.gif", ".c.png"]).path()).unwrap();
        assert_eq!((listing.files.len(), names(&listing, true).len()), (3, 1));
        assert_eq!(listing.classes, [""; 0]);
        let split =
            without_classes(directory(["train/a.png", "train/x/b.png", "val/c.png"]).path())
                .unwrap();
        assert_eq!(names(&split, false), ["train/a.png", "train/x/b.png"]);
        assert_eq!(names(&split, true), ["val/c.png"]);
        let error = without_classes(directory(["notes.txt"]).path()).unwrap_err().to_string();
        assert!(
            error.contains(".webp or .gif file in it") && error.contains("data fetch photos"),
            "{error}"
        );
    }
}
