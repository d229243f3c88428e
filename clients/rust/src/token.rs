//! The token that says who is calling.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use anyhow::{Context, ensure};
use http::HeaderValue;
use tracing::warn;

/// A token as the header `authorization` carries it. Its file is read again when it has changed.
pub(crate) struct Token {
    file: Option<PathBuf>,
    read: Mutex<Read>,
}

struct Read {
    header: HeaderValue,
    /// Modification time and size, which distinguish versions of the file.
    version: Option<(SystemTime, u64)>,
}

impl Token {
    /// A token that stays.
    pub(crate) fn new(token: &str) -> anyhow::Result<Token> {
        let read = Read { header: header(token)?, version: None };
        Ok(Token { file: None, read: read.into() })
    }

    /// The token in the first line of `file`.
    pub(crate) fn of_file(file: &Path) -> anyhow::Result<Token> {
        let read = Read { version: version(file), header: read(file)? };
        Ok(Token { file: Some(file.into()), read: read.into() })
    }

    /// The header's value now. While the file cannot be used, the token last read stays.
    pub(crate) fn header(&self) -> HeaderValue {
        // Nothing that holds the lock can panic halfway.
        let mut last = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file {
            let version = version(file);
            if version != last.version {
                last.version = version;
                match read(file) {
                    Ok(header) => last.header = header,
                    Err(error) => warn!("the previous token stays in use: {error:#}"),
                }
            }
        }
        last.header.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("file", &self.file).finish_non_exhaustive()
    }
}

fn version(file: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(file: &Path) -> anyhow::Result<HeaderValue> {
    let failed = || format!("cannot use the token file {}", file.display());
    let text = fs::read_to_string(file).with_context(failed)?;
    let first = text.lines().next().unwrap_or_default();
    // The controller's file of all tokens.
    let server = text.lines().any(|line| line.trim() == "[[token]]");
    ensure!(
        !server,
        "{}: it is the file of a server, with an entry for each token; a client's file has one token in its first line, as \
         `asng-controller token` prints it",
        failed()
    );
    header(first).with_context(failed)
}

fn header(token: &str) -> anyhow::Result<HeaderValue> {
    let token = token.trim();
    let plain = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    ensure!(plain, "a token must be one word of ASCII letters, digits and punctuation");
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_when_it_has_changed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        assert!(Token::of_file(&file).is_err());
        fs::write(&file, "first\nnot this\n").unwrap();
        let token = Token::of_file(&file).unwrap();
        assert_eq!(token.header(), "Bearer first");
        fs::write(&file, " the-second ").unwrap();
        assert_eq!(token.header(), "Bearer the-second");
        fs::write(&file, "").unwrap();
        assert_eq!(token.header(), "Bearer the-second", "an empty file is no token");
        fs::write(&file, "# Tokens\n[[token]]\nname = \"lab\"\n").unwrap();
        assert_eq!(token.header(), "Bearer the-second");
        let error = Token::of_file(&file).unwrap_err().to_string();
        assert!(error.contains("it is the file of a server"), "{error}");
        fs::remove_file(&file).unwrap();
        assert_eq!(token.header(), "Bearer the-second");
        fs::write(&file, "the-third").unwrap();
        assert_eq!(token.header(), "Bearer the-third");
    }

    #[test]
    fn a_token_is_a_word_and_is_not_shown() {
        for text in ["", "  ", "two words", "two\nlines", "naïve"] {
            assert!(Token::new(text).is_err(), "{text:?}");
        }
        let token = Token::new("secret").unwrap();
        assert!(!format!("{token:?} {:?}", token.header()).contains("secret"));
    }
}
