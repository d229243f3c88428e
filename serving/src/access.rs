//! Tokens, with the role of each and the studies that it is bound to.
//!
//! A token is a secret that a client sends with every request, as `authorization: Bearer TOKEN`. The file of tokens
//! holds their SHA-256; a token that comes in is hashed and compared with all of them in constant time.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use data_encoding::HEXLOWER_PERMISSIVE;
use http::{HeaderMap, header::AUTHORIZATION};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::files::{Fault, Watched};

/// Shortest token in clear that a file may hold: what is shorter could be guessed.
const MIN_TOKEN: usize = 20;

/// The role of a token; each role allows all that those before it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// To look at studies.
    Viewer,
    /// To work on studies as well.
    Trainer,
    /// Everything.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Viewer => "viewer",
            Role::Trainer => "trainer",
            Role::Admin => "admin",
        })
    }
}

/// Why a request is refused.
#[derive(Debug)]
pub(crate) enum Denied {
    /// There is no token in it.
    NoToken,
    /// Its authorization is something else than a token.
    Malformed,
    /// No such token.
    Unknown,
    /// The token does not allow it.
    Role {
        /// The method that was called.
        method: String,
        /// The least role that may.
        needed: Role,
        /// The token's name.
        name: String,
        /// The token's role.
        role: Role,
    },
}

/// The studies that somebody may see and touch; the default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    owner: Option<String>,
    labels: BTreeMap<String, String>,
}

impl Scope {
    /// Returns true if a study of this owner with these labels is in the scope.
    pub fn holds(&self, owner: &str, labels: &BTreeMap<String, String>) -> bool {
        self.owner.as_ref().is_none_or(|own| own == owner)
            && self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = self.owner.iter().map(|owner| format!("owner {owner:?}"));
        let labels = self.labels.iter().map(|(key, value)| format!("label {key:?} = {value:?}"));
        let parts: Vec<_> = owner.chain(labels).collect();
        f.write_str(&parts.join(", "))
    }
}

/// The hash of a token that a client has sent: enough to recognise it, too little to use it.
#[derive(Clone, Copy)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a token in clear.
    pub fn of(token: &str) -> Fingerprint {
        Fingerprint(Sha256::digest(token).into())
    }
}

/// A token that is in use.
struct Token {
    name: String,
    role: Role,
    sha256: [u8; 32],
    scope: Scope,
}

/// The sender of a request: the holder of a token, or anybody if no tokens are in use.
#[derive(Clone)]
pub struct Identity(Option<Arc<Token>>);

impl Identity {
    /// Somebody who may do everything.
    pub fn anybody() -> Identity {
        Identity(None)
    }

    /// The token's name.
    pub fn name(&self) -> Option<&str> {
        self.0.as_deref().map(|token| token.name.as_str())
    }

    /// The studies it may see and touch.
    pub fn scope(&self) -> Scope {
        self.0.as_deref().map_or_else(Scope::default, |token| token.scope.clone())
    }

    /// The owner of a study that it creates without naming one: that of the studies it is bound to, or else itself.
    pub fn owner(&self) -> &str {
        let token = self.0.as_deref();
        token.map_or("", |token| token.scope.owner.as_ref().unwrap_or(&token.name))
    }

    /// Refuses the method at `path`, which needs the role `needed`, unless the token has it.
    pub(crate) fn check_role(&self, path: &str, needed: Role) -> Result<(), Denied> {
        match &self.0 {
            Some(token) if token.role < needed => Err(Denied::Role {
                method: path.rsplit('/').next().unwrap_or_default().into(),
                needed,
                name: token.name.clone(),
                role: token.role,
            }),
            _ => Ok(()),
        }
    }
}

/// The tokens of a file.
pub struct Tokens(Vec<Arc<Token>>);

/// Reads a file of tokens. A fault names the entry, never a token.
pub async fn read(file: PathBuf) -> Result<Watched<Tokens>, Fault> {
    let files = vec![file.clone()];
    Watched::read(files, Box::new(move |contents| Tokens::parse(&file, &contents[0]))).await
}

/// An entry of the file, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    role: Role,
    sha256: Option<String>,
    token: Option<String>,
    owner: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl Entry {
    fn check(self) -> Result<Token, String> {
        let sha256 = match (self.sha256, self.token) {
            (Some(hash), None) => HEXLOWER_PERMISSIVE
                .decode(hash.as_bytes())
                .ok()
                .and_then(|hash| hash.try_into().ok())
                .ok_or("sha256 has 64 hexadecimal digits")?,
            (None, Some(token)) if token.len() < MIN_TOKEN => {
                return Err(format!(
                    "a token has {MIN_TOKEN} characters or more; `asng-controller token` makes one"
                ));
            }
            (None, Some(token)) if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                return Err("a token has visible ASCII characters only".into());
            }
            (None, Some(token)) => Sha256::digest(token).into(),
            _ => return Err("give either sha256 or token".into()),
        };
        if !(1..=200).contains(&self.name.chars().count()) || self.name.contains(char::is_control) {
            return Err("name has 1 to 200 characters, none of them a control character".into());
        }
        let scope = Scope { owner: self.owner, labels: self.labels };
        Ok(Token { name: self.name, role: self.role, sha256, scope })
    }
}

impl Tokens {
    // The parser's messages may quote what stands in the file, so only those are passed on that cannot quote a token.
    fn parse(file: &Path, content: &[u8]) -> Result<Tokens, Fault> {
        let fault = |fault: String| Fault::new(file, fault);
        let text = str::from_utf8(content).map_err(|_| fault("is not UTF-8 text".into()))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.get(..start).unwrap_or_default();
            if text.split_whitespace().count() == 1 {
                return fault(
                    "is the token of a client; the file of a server has the entries that `asng-controller token` prints"
                        .into(),
                );
            }
            fault(format!("is not TOML from line {} on", 1 + before.matches('\n').count()))
        })?;
        let unknown = table.keys().find(|key| *key != "token");
        let entries = match table.get("token") {
            Some(toml::Value::Array(entries)) if unknown.is_none() => entries,
            _ => {
                return Err(fault(
                    "has an entry [[token]] for each token, and nothing else".into(),
                ));
            }
        };
        let mut tokens: Vec<Arc<Token>> = Vec::with_capacity(entries.len());
        for (i, entry) in entries.iter().enumerate() {
            let entry_fault = |what: &str| fault(format!("[[token]] number {}: {what}", i + 1));
            let entry =
                Entry::deserialize(entry.clone()).map_err(|error| entry_fault(error.message()))?;
            let token = entry.check().map_err(|what| entry_fault(&what))?;
            if tokens.iter().any(|other| other.sha256 == token.sha256) {
                return Err(entry_fault("is the same token as one before"));
            }
            tokens.push(Arc::new(token));
        }
        Ok(Tokens(tokens))
    }

    /// Tells who sends a request, by its headers.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Result<Identity, Denied> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (value, None) = (values.next().ok_or(Denied::NoToken)?, values.next()) else {
            return Err(Denied::Malformed);
        };
        let token = match value.to_str().map(|value| value.split_once(' ')) {
            Ok(Some((scheme, token))) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => return Err(Denied::Malformed),
        };
        self.holder(&Fingerprint::of(token))
    }

    /// Tells who holds a token.
    pub(crate) fn holder(&self, token: &Fingerprint) -> Result<Identity, Denied> {
        let mut found = None;
        // All are compared, so that the time tells nothing.
        for known in &self.0 {
            if bool::from(known.sha256.ct_eq(&token.0)) {
                found = Some(known);
            }
        }
        found.map(|token| Identity(Some(token.clone()))).ok_or(Denied::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status;

    const SECRET: &str = "a-secret-of-many-characters";

    fn parse(text: &str) -> Result<Tokens, Fault> {
        Tokens::parse(Path::new("tokens.toml"), text.as_bytes())
    }

    fn entry(rest: &str) -> String {
        format!("[[token]]\nname = \"lab\"\n{rest}\n")
    }

    fn identify(tokens: &Tokens, authorization: &[&str]) -> Result<Identity, Denied> {
        let mut headers = HeaderMap::new();
        for value in authorization {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        tokens.identify(&headers)
    }

    #[test]
    fn a_token_is_known_in_clear_and_by_its_hash() {
        let hash = HEXLOWER_PERMISSIVE.encode(&Sha256::digest(SECRET));
        for secret in [format!("token = \"{SECRET}\""), format!("sha256 = \"{hash}\"")] {
            let tokens = parse(&entry(&format!("role = \"trainer\"\n{secret}"))).unwrap();
            let who = identify(&tokens, &[&format!("Bearer {SECRET}")]).ok().unwrap();
            assert_eq!((who.name(), who.owner()), (Some("lab"), "lab"));
            assert!(who.check_role("/asng.v1.SearchService/LeaseStep", Role::Trainer).is_ok());
            let create = "/asng.v1.StudyService/CreateStudy";
            let denied = who.check_role(create, Role::Admin).unwrap_err();
            assert_eq!(
                status::denied(&denied, "controller").message(),
                "CreateStudy needs a token of role admin; \"lab\" has role trainer"
            );
            assert!(matches!(identify(&tokens, &[]), Err(Denied::NoToken)));
            assert!(matches!(identify(&tokens, &["Bearer other"]), Err(Denied::Unknown)));
            let twice = format!("Bearer {SECRET}");
            for malformed in [&[SECRET][..], &["Basic YTpi"], &[&twice, &twice]] {
                assert!(matches!(identify(&tokens, malformed), Err(Denied::Malformed)));
            }
        }
    }

    #[test]
    fn a_faulty_file_is_refused_without_quoting_a_token() {
        let good = format!("role = \"admin\"\ntoken = \"{SECRET}\"");
        for (text, expected) in [
            (String::new(), "has an entry [[token]] for each token, and nothing else"),
            (format!("token = \"{SECRET}\""), "has an entry [[token]]"),
            (format!("{SECRET}\n"), "is the token of a client"),
            (format!("[[token]]\ntoken = \"{SECRET}\n"), "is not TOML from line 2 on"),
            (entry("role = \"root\""), "number 1: unknown variant `root`"),
            (entry("role = \"admin\""), "number 1: give either sha256 or token"),
            (entry(&format!("{good}\nroles = 1")), "unknown field `roles`"),
            (entry("role = \"admin\"\ntoken = \"short\""), "20 characters or more"),
            (entry("role = \"admin\"\nsha256 = \"ab\""), "sha256 has 64 hexadecimal digits"),
            (entry(&good).repeat(2), "number 2: is the same token as one before"),
        ] {
            let fault = parse(&text).err().unwrap().to_string();
            assert!(fault.starts_with("tokens.toml: ") && fault.contains(expected), "{fault}");
            assert!(!fault.contains(SECRET), "{fault}");
        }
    }

    #[test]
    fn a_scope_holds_studies_of_its_owner_and_labels() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
        };
        let scope = Scope { owner: Some("lab".into()), labels: labels(&[("team", "vision")]) };
        assert!(scope.holds("lab", &labels(&[("team", "vision"), ("kind", "x")])));
        assert!(!scope.holds("lab", &labels(&[("team", "speech")])));
        assert!(!scope.holds("other", &labels(&[("team", "vision")])));
        assert!(Scope::default().holds("", &labels(&[])));
        assert_eq!(scope.to_string(), "owner \"lab\", label \"team\" = \"vision\"");
    }
}
