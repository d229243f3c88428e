//! The data sets of a trainer by their names, and how each is stored.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use asng_datasets::DataSet as Fetched;

use super::{
    cache, cifar,
    data_set::DataSet,
    error::{Error, IMAGE_SIZES, content},
    fashion_mnist, folders,
};

/// Height and width of the images of folders where the request names none.
const FOLDERS_IMAGE_SIZE: i64 = 64;

/// A data set as a task wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The name of the data set.
    pub name: String,
    /// Height and width in pixels; none for the native size, which is 64 for image files in folders.
    pub image_size: Option<i64>,
    /// True if the classes matter. If not, image files may also lie in no folder, and where there are ten folders or more, whole
    /// folders are held out for tests.
    pub labels: bool,
}

/// The way in which the images of a directory are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Cifar10,
    Cifar100,
    FashionMnist,
    /// Image files in folders.
    Folders,
    /// Image files in no folder.
    Flat,
}

impl Layout {
    /// Finds out by the names in `directory`, without reading a file.
    pub(crate) fn of(directory: &Path) -> Result<Layout, Error> {
        let (folders, images) = folders::entries(directory)?;
        let has = |name: &str| directory.join(name).is_file();
        let idx = |part: &str| has(&format!("{part}.gz")) || has(part);
        if has("data_batch_1.bin") || has("test_batch.bin") {
            Ok(Layout::Cifar10)
        } else if has("train.bin") || has("test.bin") {
            Ok(Layout::Cifar100)
        } else if idx("train-images-idx3-ubyte") || idx("t10k-images-idx3-ubyte") {
            Ok(Layout::FashionMnist)
        } else if has("data_batch_1") || has("batches.meta") {
            let fetch = "this is the Python version of CIFAR-10, and the binary version is needed: \
                `asng-trainer data fetch cifar10`";
            Err(content(directory, fetch))
        } else if has("train") && has("test") && has("meta") {
            let fetch = "this is the Python version of CIFAR-100, and the binary version is needed: \
                cifar-100-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html";
            Err(content(directory, fetch))
        } else if !folders.is_empty() {
            Ok(Layout::Folders)
        } else if !images.is_empty() {
            Ok(Layout::Flat)
        } else {
            let wanted = "neither data_batch_1.bin (CIFAR-10, binary version), nor train.bin (CIFAR-100, binary version), nor \
                train-images-idx3-ubyte.gz (Fashion-MNIST, packed or not), nor a folder or a .jpg, .jpeg, .png, .webp or .gif file";
            Err(content(directory, wanted))
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Cifar10 => "CIFAR-10, binary version",
            Layout::Cifar100 => "CIFAR-100, binary version",
            Layout::FashionMnist => "Fashion-MNIST, IDX files",
            Layout::Folders => "a folder for each class",
            Layout::Flat => "image files without classes",
        })
    }
}

/// Reads the data set in `directory`. For image files, also returns their names, those of the training images first; `cache` is
/// the directory that their pixels are kept in.
pub(crate) fn read(
    directory: &Path,
    request: &Request,
    cache: &Path,
) -> Result<(DataSet, Vec<String>), Error> {
    let side = request.image_size;
    if let Some(size) = side.filter(|size| !IMAGE_SIZES.contains(size)) {
        return Err(Error::ImageSize(size));
    }
    let name = &request.name;
    let in_memory = match Layout::of(directory)? {
        Layout::Cifar10 => cifar::CIFAR_10.read(name, directory, side)?,
        Layout::Cifar100 => cifar::CIFAR_100.read(name, directory, side)?,
        Layout::FashionMnist => fashion_mnist::read(name, directory, side)?,
        Layout::Folders | Layout::Flat => {
            let listing = match request.labels {
                true => folders::with_classes(directory)?,
                false => folders::without_classes(directory)?,
            };
            let side = side.unwrap_or(FOLDERS_IMAGE_SIZE);
            return cache::open(directory, name, listing, side, cache);
        }
    };
    Ok((in_memory, Vec::new()))
}

/// The data sets that this trainer has.
#[derive(Clone, Debug)]
pub struct Catalogue {
    directories: BTreeMap<String, PathBuf>,
    cache: PathBuf,
}

/// The data sets that are looked for without being named, with the command that brings them.
fn built_in() -> [(&'static str, PathBuf, &'static str); 4] {
    let cifar10 = Fetched::Cifar10.directory();
    let cifar100 = cifar10.with_file_name("cifar-100-binary");
    [
        ("cifar10", cifar10, "`asng-trainer data fetch cifar10`"),
        (
            "cifar100",
            cifar100,
            "cifar-100-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
        ),
        (
            "fashion-mnist",
            Fetched::FashionMnist.directory(),
            "`asng-trainer data fetch fashion-mnist`",
        ),
        ("photos", Fetched::Photos.directory(), "`asng-trainer data fetch photos`"),
    ]
}

impl Catalogue {
    /// Lists `cifar10`, `cifar100`, `fashion-mnist` and `photos` in their default directories, and `given` names with theirs, which
    /// come first. Decoded images are kept in the directory `cache`, made when it is needed. Errors if a name is given twice or is
    /// not `[a-z0-9._-]{1,64}`, or a given directory does not exist.
    pub fn new(given: &[(String, PathBuf)], cache: &Path) -> Result<Catalogue, Error> {
        let mut directories = BTreeMap::new();
        for (name, directory) in given {
            let refuse = |reason: &str| {
                let (name, directory) = (name.clone(), directory.clone());
                Err(Error::Argument { name, directory, reason: reason.into() })
            };
            let allowed =
                |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c);
            if !(1..=64).contains(&name.len()) || !name.bytes().all(allowed) {
                return refuse(
                    "a name has 1 to 64 of the characters a-z, 0-9, dot, underscore and hyphen",
                );
            }
            if !directory.is_dir() {
                return refuse("there is no such directory");
            }
            if directories.insert(name.clone(), directory.clone()).is_some() {
                return refuse("the name is given twice");
            }
        }
        for (name, directory, _) in built_in() {
            directories.entry(name.into()).or_insert(directory);
        }
        Ok(Catalogue { directories, cache: cache.into() })
    }

    /// Returns the names whose directory exists and looks like a data set. Nothing is decoded.
    pub fn available(&self) -> Vec<String> {
        let usable = self.directories.iter().filter(|(_, directory)| Layout::of(directory).is_ok());
        usable.map(|(name, _)| name.clone()).collect()
    }

    /// Reads a data set. Where it is not there, the error is that of [`Catalogue::find`].
    pub fn open(&self, request: &Request) -> Result<DataSet, Error> {
        Ok(read(self.find(&request.name)?, request, &self.cache)?.0)
    }

    /// Returns the directory of a data set. Where it is not there, the error names those that are, and the command that brings it.
    pub fn find(&self, name: &str) -> Result<&Path, Error> {
        if let Some(directory) = self.directories.get(name).filter(|directory| directory.is_dir()) {
            return Ok(directory);
        }
        if let Some(directory) = self.directories.get(name)
            && built_in().iter().all(|(.., built_in, _)| built_in != directory)
        {
            let reason =
                format!("its directory {} has disappeared; bring it back", directory.display());
            return Err(Error::Missing { name: name.into(), reason });
        }
        let mut reason = match &self.available()[..] {
            [] => "this trainer has none".to_owned(),
            names => format!("this trainer has {}", names.join(", ")),
        };
        if let Some((.., source)) = built_in().iter().find(|(built_in, ..)| *built_in == name) {
            reason += &format!("; bring it with {source}");
        }
        let reason = format!("{reason}; name a directory with --images {name}=DIR");
        Err(Error::Missing { name: name.into(), reason })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_catalogue_refuses_bad_names_and_directories() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path().to_owned();
        let refuse = |given: &[(&str, &Path)]| {
            let given: Vec<_> =
                given.iter().map(|(name, path)| (name.to_string(), path.to_path_buf())).collect();
            Catalogue::new(&given, &here).unwrap_err().to_string()
        };
        for name in ["", "Cats", "a b", "a/b", "katzenhäuser", &"x".repeat(65)] {
            let error = refuse(&[(name, &here)]);
            assert!(
                error.starts_with(&format!("--images {name}=")) && error.contains("1 to 64 of"),
                "{error}"
            );
        }
        assert!(refuse(&[("cats", &here), ("cats", &here)]).ends_with("the name is given twice"));
        assert!(refuse(&[("cats", &here.join("no"))]).ends_with("no: there is no such directory"));
    }

    #[test]
    fn what_is_not_there_names_what_is_and_how_to_bring_it() {
        let directory = tempfile::tempdir().unwrap();
        let images = directory.path().join("images");
        fs::create_dir_all(images.join("cats")).unwrap();
        let given = |name: &str, path: &Path| (name.to_owned(), path.to_owned());
        let given = ["cats", "cifar100", "fashion-mnist"].map(|name| given(name, &images));
        let mut catalogue = Catalogue::new(&given, directory.path()).unwrap();
        assert!(catalogue.available().starts_with(&["cats".into()]));
        catalogue.directories.retain(|name, _| name == "cats" || name == "fashion-mnist");
        let open = |catalogue: &Catalogue, name: &str, image_size| {
            let request = Request { name: name.into(), image_size, labels: true };
            catalogue.open(&request).unwrap_err()
        };
        let error = open(&catalogue, "flowers", None);
        assert!(matches!(error, Error::Missing { .. }));
        assert_eq!(
            error.to_string(),
            "no data set \"flowers\" here: this trainer has cats, fashion-mnist; name a directory with --images flowers=DIR"
        );
        catalogue.directories.insert("birds".into(), directory.path().join("nowhere"));
        let error = open(&catalogue, "birds", None).to_string();
        assert!(error.ends_with("nowhere has disappeared; bring it back"), "{error}");
        catalogue.directories.remove("fashion-mnist");
        let error = open(&catalogue, "fashion-mnist", None).to_string();
        assert!(
            error.contains(
                "this trainer has cats; bring it with `asng-trainer data fetch fashion-mnist`;"
            ),
            "{error}"
        );
        for size in [15, 257, -1] {
            let error = open(&catalogue, "cats", Some(size)).to_string();
            assert_eq!(error, format!("image size {size} must be between 16 and 256"));
        }
    }

    #[test]
    fn a_directory_is_known_by_the_names_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let of = |files: &[&str]| {
            let directory = tempfile::tempdir_in(&directory).unwrap();
            files.iter().for_each(|file| fs::write(directory.path().join(file), "").unwrap());
            Layout::of(directory.path()).map_err(|error| error.to_string())
        };
        assert_eq!(of(&["test_batch.bin"]), Ok(Layout::Cifar10));
        assert_eq!(of(&["train.bin", "test.bin"]), Ok(Layout::Cifar100));
        assert_eq!(of(&["train-images-idx3-ubyte"]), Ok(Layout::FashionMnist));
        assert_eq!(of(&["a.webp"]), Ok(Layout::Flat));
        let error = of(&["data_batch_1", "batches.meta"]).unwrap_err();
        assert!(
            error.ends_with("the binary version is needed: `asng-trainer data fetch cifar10`"),
            "{error}"
        );
        let error = of(&["train", "test", "meta"]).unwrap_err();
        assert!(
            error.contains("Python version of CIFAR-100") && error.contains("cifar-100-binary"),
            "{error}"
        );
        let error = of(&["notes.txt", ".a.png"]).unwrap_err();
        assert!(error.contains("data_batch_1.bin") && error.contains(".webp"), "{error}");
    }
}
