//! The token: whoever has it may change something, and see rows.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::settings::Secret;

/// Nobody guesses half of what this process makes.
const TOKEN_BYTES_MIN: usize = 32;

/// It travels in a header.
const TOKEN_BYTES_MAX: usize = 1024;

/// What this process makes, before it is written in hexadecimal.
const RANDOM_BYTES: usize = 32;

/// What a proof is of, so that nobody takes it for anything else.
const PROOF_OF: &str = "tidewater token ";

/// The word that actions, and whatever shows rows, ask for: `Authorization: Bearer …`. It is never printed.
///
/// ```
/// use tidewater::http::Token;
///
/// assert!(Token::new("a word that everybody could guess").is_err());
/// let token = Token::new("5Z0XoTAbM1oZ0bDYh7CEj3cP8kq2VwRt")?;
/// assert_eq!(format!("{token:?}"), "Token((secret))");
/// # Ok::<(), tidewater::http::TokenError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Token(Secret);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It would be guessed, or fits into no header.
    #[error(
        "a token has {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} letters, digits and signs of ASCII, and no spaces"
    )]
    Unsuitable,
    /// What the file holds is none; with no token in it, a new one is made when the file is gone.
    #[error("{} holds no token: {}", .0.display(), TokenError::Unsuitable)]
    NoToken(PathBuf),
    /// Others may know it.
    #[error("others may read {}, or own it: `chmod 600`, and a new token, if somebody may have seen this one", .0.display())]
    Exposed(PathBuf),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl Token {
    /// A token of somebody else's making.
    ///
    /// # Errors
    /// [`TokenError::Unsuitable`] when it is too short, too long, or no word.
    pub fn new(text: impl Into<String>) -> Result<Self, TokenError> {
        let text = text.into();
        let fits = (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&text.len());
        match fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(Secret::new(text))),
            false => Err(TokenError::Unsuitable),
        }
    }

    /// The one in a file; where there is no such file, a new one, in a file that its owner alone may read.
    ///
    /// # Errors
    /// [`TokenError::Exposed`] when others may read the file, or made it, [`TokenError::NoToken`], [`TokenError::Io`].
    pub fn in_file(path: &Path) -> Result<Self, TokenError> {
        loop {
            match read(path) {
                Err(TokenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                found => return found,
            }
            match make(path) {
                // Somebody else was faster.
                Err(TokenError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made,
            }
        }
    }

    /// Whether this is the one. How long it takes tells nothing but the length.
    pub(super) fn is(&self, given: &[u8]) -> bool {
        self.0.expose().as_bytes().ct_eq(given).into()
    }

    /// What nobody can say to this nonce who does not know the token, and what tells nothing of it: HMAC-SHA256, in hexadecimal.
    pub(super) fn proof(&self, nonce: &str) -> Option<String> {
        // A key of any length will do.
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose().as_bytes()).ok()?;
        mac.update(PROOF_OF.as_bytes());
        mac.update(nonce.as_bytes());
        Some(mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> TokenError {
    move |source| TokenError::Io { path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<Token, TokenError> {
    let file = File::open(path).map_err(failed(path))?;
    let found = file.metadata().map_err(failed(path))?;
    // A file of somebody else's has a token that somebody else knows.
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&found.uid());
    if !ours || found.mode() & 0o077 != 0 {
        return Err(TokenError::Exposed(path.to_owned()));
    }
    let mut text = String::new();
    // What is longer than any token is none, and not read.
    let read = file.take(TOKEN_BYTES_MAX as u64 + 3).read_to_string(&mut text);
    if let Err(error) = read
        && error.kind() != io::ErrorKind::InvalidData
    {
        return Err(failed(path)(error));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Token::new(line.strip_suffix('\r').unwrap_or(line)).map_err(|_| TokenError::NoToken(path.to_owned()))
}

/// Whole, or not at all: a file that is cut off would be taken for somebody's mistake at the next start.
fn make(path: &Path) -> Result<Token, TokenError> {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(|error| failed(path)(io::Error::other(error)))?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // With mode 0600 from the first moment.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed(path))?;
    writeln!(file, "{text}").and_then(|()| file.as_file().sync_all()).map_err(failed(path))?;
    file.persist_noclobber(path).map_err(|error| failed(path)(error.error))?;
    // Of a file that is not there after a power cut, another one is made.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Token::new(text)
}

/// Where a person finds it.
pub(super) fn shown(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const WORD: &str = "0123456789abcdef0123456789abcdef";

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db.token");
        (folder, path)
    }

    fn write(path: &Path, text: impl AsRef<[u8]>, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A token is made once, for its owner alone, and is another one in each file; nothing else is left in the folder.
    #[test]
    fn a_missing_file_is_made_once() {
        let (folder, path) = file();
        Token::in_file(&path).unwrap();
        let made = fs::read_to_string(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(made.len() == 2 * RANDOM_BYTES + 1 && made.ends_with('\n'), "{made:?}");
        let again = Token::in_file(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), made);
        assert!(again.is(made.trim_end().as_bytes()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let (_other, path) = file();
        Token::in_file(&path).unwrap();
        assert_ne!(fs::read_to_string(&path).unwrap(), made);
        assert!(Token::in_file(Path::new("/nowhere/x.token")).unwrap_err().to_string().contains("/nowhere"));
    }

    /// A file that others may read, directly or behind a link, is refused, and so is one that holds something else.
    #[test]
    fn a_file_that_others_may_read_or_that_holds_no_token_is_refused() {
        let (folder, path) = file();
        for mode in [0o640, 0o604, 0o620, 0o666] {
            write(&path, WORD, mode);
            assert!(matches!(Token::in_file(&path), Err(TokenError::Exposed(_))), "{mode:o}");
        }
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(Token::in_file(&link), Err(TokenError::Exposed(_))));
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        let wrong: [&[u8]; 7] = [
            b"",
            b"\n",
            b"short\n",
            long.as_bytes(),
            &[0xff; 40],
            b"two words, and long enough for one\n",
            &[0; 40],
        ];
        for text in wrong {
            write(&path, text, 0o600);
            let error = Token::in_file(&path).unwrap_err();
            assert!(matches!(error, TokenError::NoToken(_)), "{error}");
            assert!(!error.to_string().contains("two words"), "{error}");
        }
        for text in [WORD.to_owned(), format!("{WORD}\n"), format!("{WORD}\r\n")] {
            write(&path, &text, 0o600);
            assert!(Token::in_file(&link).unwrap().is(WORD.as_bytes()), "{text:?}");
        }
    }

    /// Only the whole word is the word, and nothing prints it.
    #[test]
    fn only_the_word_itself_is_the_token() {
        let token = Token::new(WORD).unwrap();
        assert!(token.is(WORD.as_bytes()));
        for other in ["", &WORD[..31], &WORD.to_uppercase(), &format!("{WORD}0"), &format!(" {WORD}")] {
            assert!(!token.is(other.as_bytes()), "{other}");
        }
        assert!(!format!("{token:?}").contains(WORD));
    }

    /// A proof is of one token and one nonce, as every other HMAC-SHA256 has it.
    #[test]
    fn a_proof_is_of_the_token_and_the_nonce() {
        let proof = |word: &str, nonce: &str| Token::new(word).unwrap().proof(nonce).unwrap();
        assert_eq!(proof(WORD, "0123"), "90d3274130a2667a8d8ebf7b7b44e4cc761fc8749cf5e4094cb437bd26b5e89e");
        assert_ne!(proof(WORD, "0123"), proof(WORD, "0124"));
        assert_ne!(proof(WORD, "0123"), proof(&format!("{WORD}0"), "0123"));
    }
}
