//! A connection by way of another host: a channel of that host's connection, as a socket.

use super::session::Session;
use super::transport::Process;
use crate::error::{Error, Result};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Bytes moved at once.
const PIECE: usize = 64 << 10;

/// A socket whose other end is `host`:`port` as the host of `via` sees it. Two threads move the bytes until one side ends.
pub(super) fn tunnel(via: &Arc<Session>, host: &str, port: u16) -> Result<UnixStream> {
    let Process {
        mut stdin,
        mut stdout,
        mut control,
    } = via.tunnel(host, port)?;
    let failed = |e| Error::io("making a pair of sockets", e);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let (mut from, mut to) = (theirs.try_clone().map_err(failed)?, theirs);
    let keep = Arc::clone(via);
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        thread.map_err(|e| Error::io("starting a thread", e))
    };
    spawn(
        "ssh-out",
        Box::new(move || {
            let mut buf = vec![0; PIECE];
            while let Ok(count @ 1..) = from.read(&mut buf) {
                if stdin.write_all(buf.get(..count).unwrap_or_default()).is_err() {
                    break;
                }
            }
            let _ = from.shutdown(Shutdown::Both);
            control.kill();
            drop(keep);
        }),
    )?;
    spawn(
        "ssh-in",
        Box::new(move || {
            let mut buf = vec![0; PIECE];
            while let Ok(count @ 1..) = stdout.read(&mut buf) {
                if to.write_all(buf.get(..count).unwrap_or_default()).is_err() {
                    break;
                }
            }
            // The other thread sees this as the end.
            let _ = to.shutdown(Shutdown::Both);
        }),
    )?;
    Ok(ours)
}
