//! Keys that open encrypted volumes. They are never shown, and their memory is cleared when it is given back.

use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

/// A passphrase or the content of a key file.
pub type Secret = Zeroizing<Vec<u8>>;

/// Asks the user for the passphrase of the volume that is named; `None` to go on without.
pub type Ask = Arc<dyn Fn(&str) -> Option<Secret> + Send + Sync>;

/// How often a passphrase is asked for when it does not fit.
const TRIES: u32 = 3;

/// What the work that a header asks for is held against: a made-up header must neither take all memory nor all time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of Argon2, in KiB.
    pub memory: u64,
    /// Passes of Argon2 times its memory, in KiB.
    pub passes: u64,
    /// Iterations of PBKDF2.
    pub iterations: u64,
}

impl Default for Limits {
    /// 4 GiB, as cryptsetup has it; 256 GiB in all passes; 200,000,000 iterations.
    fn default() -> Self {
        Self {
            memory: 4 << 20,
            passes: 256 << 20,
            iterations: 200_000_000,
        }
    }
}

/// The keys that every encrypted volume is tried with.
#[derive(Clone, Default)]
pub struct Keys {
    given: Vec<Secret>,
    ask: Option<Ask>,
    /// Passphrases that were asked for and fitted.
    told: Arc<Mutex<Vec<Secret>>>,
    /// What opening may cost.
    pub limits: Limits,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("given", &self.given.len())
            .field("asks", &self.ask.is_some())
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// Keys that are known, and a way to ask for more.
    pub fn new(given: Vec<Secret>, ask: Option<Ask>) -> Self {
        Self {
            given,
            ask,
            ..Self::default()
        }
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.given.len()
    }

    /// True if no key is known.
    pub fn is_empty(&self) -> bool {
        self.given.is_empty()
    }

    /// What `open` makes of the first key that fits `device`; `None` if none does. A key file that ends in a line feed is
    /// tried without it too: editors add one.
    ///
    /// # Errors
    /// Whatever `open` fails with.
    pub(super) fn try_each<T, E>(
        &self,
        device: &str,
        mut open: impl FnMut(&[u8]) -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let told: Vec<Secret> = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for key in self.given.iter().chain(&told) {
            for key in std::iter::once(key.as_slice()).chain(key.strip_suffix(b"\n")) {
                if let Some(opened) = open(key)? {
                    return Ok(Some(opened));
                }
            }
        }
        for _ in 0..TRIES {
            let Some(key) = self.ask.as_ref().and_then(|ask| ask(device)) else {
                break;
            };
            if let Some(opened) = open(&key)? {
                self.told.lock().unwrap_or_else(PoisonError::into_inner).push(key);
                return Ok(Some(opened));
            }
        }
        Ok(None)
    }
}
