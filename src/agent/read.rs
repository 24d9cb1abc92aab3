//! Reading one file of a host in motion: its content, its digest, or a delta.

use super::limits::Limits;
use super::wire::{Encoder, Got, Item, Job, MAX, PIECE, Want, Why, kind, pack};
use crate::source::walk::open_below;
use crate::tree::Time;
use rustix::fs::{Advice, FileType, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

/// How often a file that changes while it is read is read again.
const AGAIN: u32 = 3;
/// The kernel's clock for files moves in steps; what was written this long before a read may have the same time as what is
/// written during it.
const STEP: Duration = Duration::from_millis(20);
/// From this size on the kernel is told that all will be read.
const LARGE: u64 = 1 << 20;

/// Where blocks go.
pub(super) trait Output: Sync {
    fn send(&self, kind: u8, payload: &[u8]);
}

/// Items on their way into a block.
pub(super) struct Block<'a> {
    raw: Encoder,
    out: &'a dyn Output,
}

impl<'a> Block<'a> {
    pub(super) fn new(out: &'a dyn Output) -> Self {
        Self {
            raw: Encoder::default(),
            out,
        }
    }

    fn put(&mut self, item: &Item<'_>) {
        if self.raw.0.len() > MAX - PIECE - 8192 {
            self.flush();
        }
        item.encode(&mut self.raw);
        if self.raw.0.len() > MAX / 2 {
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        if !self.raw.0.is_empty() {
            self.out.send(kind::DATA, &pack(&self.raw.0, 1));
            self.raw.0.clear();
        }
    }
}

/// What a reading failed with.
struct Failed(Why, String);

impl From<Errno> for Failed {
    fn from(e: Errno) -> Self {
        let why = match e {
            Errno::NOENT | Errno::NOTDIR | Errno::STALE => Why::Vanished,
            Errno::LOOP => Why::Replaced,
            Errno::ACCESS | Errno::PERM => Why::Denied,
            _ => Why::Other,
        };
        Self(why, std::io::Error::from(e).to_string())
    }
}

/// Does one job.
pub(super) fn work(
    root: BorrowedFd<'_>,
    job: &Job,
    signature: &[u8],
    limits: &Limits,
    buf: &mut Vec<u8>,
    out: &mut Block<'_>,
) {
    limits.working();
    if let Err(Failed(why, what)) = attempts(root, job, signature, limits, buf, out) {
        out.put(&Item::Failed {
            job: job.number,
            why,
            what,
        });
    }
}

fn attempts(
    root: BorrowedFd<'_>,
    job: &Job,
    signature: &[u8],
    limits: &Limits,
    buf: &mut Vec<u8>,
    out: &mut Block<'_>,
) -> Result<(), Failed> {
    let number = job.number;
    let mut from = match &job.want {
        Want::Content(from) => *from,
        _ => 0,
    };
    let mut began = false;
    for attempt in 0..=AGAIN {
        if attempt > 0 {
            std::thread::sleep(STEP);
            if began {
                out.put(&Item::Again { job: number });
            }
            from = 0;
        }
        let file = open(root, job)?;
        let clock = SystemTime::now();
        let before = rustix::fs::fstat(&file)?;
        let len = u64::try_from(before.st_size).unwrap_or(0);
        let send = match &job.want {
            Want::Content(_) => true,
            Want::Digest => false,
            Want::Unless(digest) => {
                let (read, found) = contents(&file, len, limits, buf, |_| {})?;
                read != len || found != *digest
            }
            Want::Delta => {
                let (read, digest) = delta(&file, len, job, signature, out, &mut began)?;
                let after = rustix::fs::fstat(&file)?;
                let torn = read != len || !same(&before, &after);
                if (torn || is_fresh(&before, clock)) && attempt < AGAIN {
                    continue;
                }
                out.put(&Item::End {
                    job: number,
                    got: got(&after, read, digest, torn),
                    sent: true,
                });
                return Ok(());
            }
        };
        let from = from.min(len);
        let mut at = 0;
        let (read, digest) = contents(&file, len, limits, buf, |part| {
            let n = part.len();
            if send && at + n > from {
                began = true;
                let skip = from.saturating_sub(at);
                match part {
                    Part::Data(bytes) => {
                        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                        let bytes = bytes.get(skip..).unwrap_or_default();
                        out.put(&Item::Data {
                            job: number,
                            bytes,
                            at: 0,
                        });
                    }
                    Part::Hole(len) => out.put(&Item::Hole {
                        job: number,
                        len: len - skip,
                    }),
                }
            }
            at += n;
        })?;
        let after = rustix::fs::fstat(&file)?;
        let torn = read != len || !same(&before, &after) || is_fresh(&before, clock);
        if torn && attempt < AGAIN {
            continue;
        }
        // A time that is fresh alone proves nothing: the file was read three times more, and each time it had this one.
        let torn = read != len || !same(&before, &after);
        out.put(&Item::End {
            job: number,
            got: got(&after, read, digest, torn),
            sent: send,
        });
        return Ok(());
    }
    Ok(())
}

fn open(root: BorrowedFd<'_>, job: &Job) -> Result<OwnedFd, Failed> {
    let file = open_below(root, &job.path, OFlags::NONBLOCK)?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Failed(Why::Replaced, "it is no regular file any more".into()));
    }
    if stat.st_size.cast_unsigned() >= LARGE {
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
    }
    Ok(file)
}

enum Part<'a> {
    Data(&'a [u8]),
    Hole(u64),
}

impl Part<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Hole(len) => *len,
        }
    }
}

/// Hands the first `len` bytes of `file` to `f`, holes as such. Gives how many there were, and their BLAKE3.
fn contents(
    file: &OwnedFd,
    len: u64,
    limits: &Limits,
    buf: &mut Vec<u8>,
    mut f: impl FnMut(Part<'_>),
) -> Result<(u64, [u8; 32]), Failed> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut hasher = blake3::Hasher::new();
    buf.resize(PIECE, 0);
    let mut at = 0;
    // The end of the data that is known to begin at `at`. Small files are read without asking for holes.
    let mut data = if len <= 64 << 10 { len } else { 0 };
    while at < len {
        if at >= data {
            match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(next) if next > at => {
                    let hole = next.min(len) - at;
                    zeros(&mut hasher, hole, &ZEROS);
                    f(Part::Hole(hole));
                    at += hole;
                    continue;
                }
                Ok(_) => data = rustix::fs::seek(file, SeekFrom::Hole(at)).unwrap_or(len).min(len),
                Err(Errno::NXIO) => {
                    // All the rest is a hole, or the file is shorter now.
                    let end = u64::try_from(rustix::fs::fstat(file)?.st_size)
                        .unwrap_or(0)
                        .min(len);
                    if end > at {
                        zeros(&mut hasher, end - at, &ZEROS);
                        f(Part::Hole(end - at));
                        at = end;
                    }
                    break;
                }
                Err(_) => data = len,
            }
            data = data.max(at + 1);
        }
        let want = usize::try_from(data - at).unwrap_or(PIECE).min(PIECE);
        let n = match rustix::io::pread(file, buf.get_mut(..want).unwrap_or_default(), at) {
            Ok(0) => break,
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let part = buf.get(..n).unwrap_or_default();
        hasher.update(part);
        f(Part::Data(part));
        at += n as u64;
        if at.is_multiple_of(16 << 20) {
            limits.working();
        }
    }
    Ok((at, *hasher.finalize().as_bytes()))
}

/// Sends the delta from what `signature` was made of to the first `len` bytes of `file`. Gives how many there were, and their
/// BLAKE3.
fn delta(
    file: &OwnedFd,
    len: u64,
    job: &Job,
    signature: &[u8],
    out: &mut Block<'_>,
    began: &mut bool,
) -> Result<(u64, [u8; 32]), Failed> {
    let mut from = Hashed {
        file,
        at: 0,
        len,
        hasher: blake3::Hasher::new(),
    };
    let mut to = Deltas {
        job: job.number,
        out,
        began,
    };
    crate::rdiff::delta(signature, &mut from, &mut to).map_err(|e| Failed(Why::Other, e.to_string()))?;
    Ok((from.at, *from.hasher.finalize().as_bytes()))
}

/// A file as a stream that is hashed on the way.
struct Hashed<'a> {
    file: &'a OwnedFd,
    at: u64,
    len: u64,
    hasher: blake3::Hasher,
}

impl std::io::Read for Hashed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.len - self.at)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let n = rustix::io::pread(self.file, buf.get_mut(..most).unwrap_or_default(), self.at)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        self.at += n as u64;
        Ok(n)
    }
}

/// A delta on its way.
struct Deltas<'a, 'b> {
    job: u32,
    out: &'a mut Block<'b>,
    began: &'a mut bool,
}

impl std::io::Write for Deltas<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        *self.began = true;
        for bytes in buf.chunks(PIECE) {
            self.out.put(&Item::Data {
                job: self.job,
                bytes,
                at: 0,
            });
        }
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn zeros(hasher: &mut blake3::Hasher, mut len: u64, zeros: &[u8]) {
    while len > 0 {
        let n = usize::try_from(len).unwrap_or(zeros.len()).min(zeros.len());
        hasher.update(zeros.get(..n).unwrap_or(zeros));
        len -= n as u64;
    }
}

fn time(sec: i64, nsec: u64) -> Time {
    Time {
        sec,
        nsec: u32::try_from(nsec).unwrap_or(0),
    }
}

fn same(a: &Stat, b: &Stat) -> bool {
    let times = |s: &Stat| (s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec);
    (a.st_size, times(a)) == (b.st_size, times(b))
}

/// True if a change right now could leave the times as they are.
fn is_fresh(stat: &Stat, now: SystemTime) -> bool {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let ctime = time(stat.st_ctime, stat.st_ctime_nsec);
    let changed = Duration::new(u64::try_from(ctime.sec).unwrap_or(0), ctime.nsec);
    changed + STEP > since && changed < since + STEP
}

fn got(stat: &Stat, len: u64, digest: [u8; 32], torn: bool) -> Got {
    Got {
        len,
        digest,
        ino: stat.st_ino,
        mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        torn,
    }
}
