//! The keys of encrypted volumes: `--key-file`, and a passphrase that is asked for.

use super::ui::Ui;
use crate::error::{Error, Escaped, Result};
use crate::volume::{Ask, Keys, Secret};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// A longer key file is none (cryptsetup has the same limit).
const MAX_KEY_FILE: usize = 8 << 20;
/// A longer passphrase is none.
const MAX_PASSPHRASE: usize = 4096;
const CTRL_C: u8 = 3;

/// The keys in `files`, and the way to ask for more if stdin is a terminal.
///
/// # Errors
/// [`Error::Io`] if a file cannot be read, [`Error::Usage`] if it is too long or stdin is named twice.
pub(super) fn keys(files: &[PathBuf], ui: &Ui) -> Result<Keys> {
    let stdin = |path: &Path| path == Path::new("-");
    if files.iter().filter(|f| stdin(f)).count() > 1 {
        return Err(Error::usage(
            "--key-file - is given twice: stdin can be read once",
        ));
    }
    let mut given = Vec::new();
    for path in files {
        given.push(if stdin(path) {
            read(&mut std::io::stdin().lock(), "stdin")?
        } else {
            let name = path.display().to_string();
            let mut file = std::fs::File::open(path).map_err(|e| Error::io(format!("opening {name}"), e))?;
            read(&mut file, &name)?
        });
    }
    let ask = std::io::stdin().is_terminal() && !files.iter().any(|f| stdin(f));
    let bars = ui.bars();
    let ask = ask.then(|| -> Ask { Arc::new(move |device| bars.suspend(|| ask_for(device))) });
    Ok(Keys::new(given, ask))
}

fn read(from: &mut dyn Read, name: &str) -> Result<Secret> {
    // With room from the start: a buffer that grows leaves copies behind.
    let mut key = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE.min(64 << 10)));
    let failed = |e| Error::io(format!("reading {name}"), e);
    from.take(MAX_KEY_FILE as u64 + 1)
        .read_to_end(&mut key)
        .map_err(failed)?;
    if key.len() > MAX_KEY_FILE {
        return Err(Error::usage(format!(
            "the key file {name} is longer than {MAX_KEY_FILE} bytes"
        )));
    }
    Ok(key)
}

/// The first line of `from`, at most [`MAX_PASSPHRASE`] bytes, without its end.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Usage`] if it is too long.
pub(super) fn read_line_of(from: &mut dyn Read, name: &str) -> Result<Secret> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_PASSPHRASE + 1));
    // A byte at a time: what stands behind the line is not for this.
    let mut byte = Zeroizing::new([0]);
    while from
        .read(&mut *byte)
        .map_err(|e| Error::io(format!("reading {name}"), e))?
        == 1
        && *byte != [b'\n']
    {
        if line.len() == MAX_PASSPHRASE {
            return Err(Error::usage(format!(
                "the first line of {name} is longer than {MAX_PASSPHRASE} bytes"
            )));
        }
        line.extend_from_slice(&*byte);
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(line)
}

/// Asks for the passphrase of `device` without showing what is typed; an empty one goes on without.
fn ask_for(device: &str) -> Option<Secret> {
    ask(
        &format!("passphrase for {device} (Enter to go on without): "),
        false,
    )
}

/// Asks the user at the terminal; what is typed is shown only with `echo`. `None` if stdin is no terminal, or for an empty
/// answer.
pub(super) fn ask(text: &str, echo: bool) -> Option<Secret> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return None;
    }
    let before = tcgetattr(&stdin).ok()?;
    let mut silent = before.clone();
    // Signals stay off until the echo is back: ending the program here would leave a terminal that shows nothing.
    silent.local_modes.remove(LocalModes::ISIG);
    silent.local_modes.set(LocalModes::ECHO, echo);
    silent.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON);
    silent.special_codes[SpecialCodeIndex::VEOL] = CTRL_C;
    let mut err = std::io::stderr();
    let _ = write!(err, "{}", Escaped(text.as_bytes()));
    let _ = err.flush();
    tcsetattr(&stdin, OptionalActions::Flush, &silent).ok()?;
    // Straight from the terminal: a buffered reader would keep a copy. One read is one line.
    let mut line = Zeroizing::new(vec![0; MAX_PASSPHRASE]);
    let read = rustix::io::read(&stdin, &mut **line);
    let _ = tcsetattr(&stdin, OptionalActions::Now, &before);
    line.truncate(read.ok()?);
    // Ctrl-C was a byte like any other meanwhile.
    if line.contains(&CTRL_C) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT);
        return None;
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    (!line.is_empty()).then_some(line)
}
