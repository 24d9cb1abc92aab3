//! What the two sides of a connection say.
//!
//! ```text
//! frame    u32 length of the payload, u8 kind, payload, u32 CRC-32 of kind and payload; little-endian, payload at most 1 MiB
//! numbers  LEB128, at most ten bytes; signed ones zigzag
//! strings  length, bytes
//! block    u8 method (0 plain, 1 zstd), length when unpacked (at most 1 MiB), bytes: a sequence of items
//! ```
//!
//! The far side speaks first, with [`Hello`]. All that comes from it is untrusted: every decoder here is bounded by the bytes
//! that are there and by constants.

pub use super::codec::{Decoder, Encoder, check, frame, pack, read_frame, unpack, write_frame};

use super::VERSION;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::tree::{FileId, Kind, Node, Time};

/// The largest payload, and the most that a block unpacks to, in bytes.
pub const MAX: usize = 1 << 20;
/// Bytes of a file that travel in one item.
pub const PIECE: usize = 256 << 10;
/// What [`Hello`] begins with.
pub const MAGIC: [u8; 8] = *b"vm2k\r\n\0\x1a";

/// The kinds of frames.
pub mod kind {
    /// From the host: [`super::Hello`].
    pub const HELLO: u8 = 1;
    /// A block of [`super::Walked`] items.
    pub const WALKED: u8 = 2;
    /// The walk is complete.
    pub const WALK_DONE: u8 = 3;
    /// A block of [`super::Item`]s.
    pub const DATA: u8 = 4;
    /// The far side lives and works.
    pub const ALIVE: u8 = 5;
    /// A part of the answer to LIVE: flag (1: the last one), bytes.
    pub const LIVE_PART: u8 = 6;
    /// The far side cannot go on; text.
    pub const FAILED: u8 = 7;
    /// The answer to QUIT; the last frame. Bytes received and sent by the far side, both as numbers.
    pub const BYE: u8 = 8;
    /// To the host: [`super::Start`].
    pub const START: u8 = 64;
    /// A block of [`super::Job`]s.
    pub const JOBS: u8 = 65;
    /// A part of a signature: number of its job, bytes. It stands before its job.
    pub const SIGNATURE: u8 = 66;
    /// Asks for what only a running host knows.
    pub const LIVE: u8 = 67;
    /// No more requests.
    pub const QUIT: u8 = 68;
}

/// The first words of the far side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its build, as [`super::build`] gives it.
    pub build: String,
    /// The user it runs as.
    pub uid: u32,
    /// As uname(2) says: `x86_64`.
    pub machine: String,
    /// As uname(2) says: `6.1.0-21-amd64`.
    pub kernel: String,
    /// As uname(2) says.
    pub hostname: String,
    /// BLAKE3 of its own executable; zeros if it could not be read.
    pub executable: [u8; 32],
    /// A name of the host that stays: BLAKE3 of /etc/machine-id; zeros if there is none.
    pub host: [u8; 32],
}

impl Hello {
    /// As a payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder(MAGIC.to_vec());
        out.0.extend_from_slice(&VERSION.to_le_bytes());
        out.string(self.build.as_bytes());
        out.number(self.uid.into());
        out.string(self.machine.as_bytes());
        out.string(self.kernel.as_bytes());
        out.string(self.hostname.as_bytes());
        out.0.extend_from_slice(&self.executable);
        out.0.extend_from_slice(&self.host);
        out.0
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for what is none, [`Error::Unsupported`] for another version of the protocol.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(payload);
        if from.array()? != MAGIC {
            return Err(Error::corrupt("the far side does not speak this protocol", 0));
        }
        let version = u16::from_le_bytes(from.array()?);
        let build = from.text()?;
        if version != VERSION {
            return Err(Error::unsupported(format!(
                "the agent on the host is {build:?}, which speaks version {version} of the protocol; this is version {VERSION}"
            )));
        }
        Ok(Self {
            build,
            uid: from.small()?,
            machine: from.text()?,
            kernel: from.text()?,
            hostname: from.text()?,
            executable: from.array()?,
            host: from.array()?,
        })
    }
}

/// The first words of the near side: where to walk, and how gently.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// The directory of the host that is read as the machine's root.
    pub root: Vec<u8>,
    /// Stay on the filesystem of `root`.
    pub one_filesystem: bool,
    /// The most bytes a second that are sent; 0: any.
    pub rate: u64,
    /// Wait while the load of the last minute is above this, in hundredths; 0: never.
    pub load: u32,
}

impl Start {
    /// As a payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::default();
        out.string(&self.root);
        out.number(self.one_filesystem.into());
        out.number(self.rate);
        out.number(self.load.into());
        out.0
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for what is none.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(payload);
        Ok(Self {
            root: from.string()?.to_vec(),
            one_filesystem: from.number()? != 0,
            rate: from.number()?,
            load: from.small()?,
        })
    }
}

/// A filesystem of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filesystem {
    /// Its number in file ids.
    pub number: u32,
    /// What names it for good: its UUID, or else device and type.
    pub identity: Vec<u8>,
    /// As mount(8) names it.
    pub kind: String,
    /// What is mounted, as `/dev/sda1`.
    pub device: String,
    /// Where, on the host.
    pub mounted: String,
    /// UUID, if known.
    pub uuid: String,
    /// Label, if known.
    pub label: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
}

/// An item of a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Walked {
    /// A path and what is there.
    Entry(GuestPath, Node),
    /// What could not be read.
    Problem(GuestPath, String),
    /// A filesystem whose files come, or came.
    Filesystem(Filesystem),
}

/// Writes items of a walk; each is told by its difference from the one before.
#[derive(Debug, Default)]
pub struct WalkEncoder {
    out: Encoder,
    last: Vec<u8>,
    mtime: i64,
    ctime: i64,
    ino: u64,
}

/// Tags of [`Walked`] items: these, and 16 for an entry and more for its kind.
const FILESYSTEM: u8 = 1;
const PROBLEM: u8 = 2;
const ENTRY: u8 = 16;

fn kind_number(kind: &Kind) -> u8 {
    match kind {
        Kind::Directory => 0,
        Kind::File { .. } => 1,
        Kind::Symlink { .. } => 2,
        Kind::Block { .. } => 3,
        Kind::Char { .. } => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
    }
}

impl WalkEncoder {
    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.out.0.len()
    }
    /// True before the first item.
    pub fn is_empty(&self) -> bool {
        self.out.0.is_empty()
    }
    /// The items so far; the next one begins anew.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self).out.0
    }

    fn path(&mut self, path: &GuestPath) {
        let bytes = path.as_bytes();
        let same = self.last.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        self.out.number(same as u64);
        self.out.string(bytes.get(same..).unwrap_or_default());
        self.last.truncate(same);
        self.last.extend_from_slice(bytes.get(same..).unwrap_or_default());
    }

    /// An entry.
    pub fn entry(&mut self, path: &GuestPath, node: &Node) {
        self.out.0.push(ENTRY + kind_number(&node.kind));
        self.path(path);
        let out = &mut self.out;
        out.number(node.mode.into());
        out.number(node.uid.into());
        out.number(node.gid.into());
        out.signed(node.mtime.sec.wrapping_sub(self.mtime));
        out.number(node.mtime.nsec.into());
        out.signed(node.ctime.sec.wrapping_sub(self.ctime));
        out.number(node.ctime.nsec.into());
        out.number(node.id.fs.into());
        out.signed(node.id.ino.wrapping_sub(self.ino).cast_signed());
        out.number(node.nlink.into());
        (self.mtime, self.ctime, self.ino) = (node.mtime.sec, node.ctime.sec, node.id.ino);
        match &node.kind {
            Kind::File { size } => out.number(*size),
            Kind::Symlink { target } => out.string(target),
            Kind::Block { major, minor } | Kind::Char { major, minor } => {
                out.number((*major).into());
                out.number((*minor).into());
            }
            Kind::Directory | Kind::Fifo | Kind::Socket => {}
        }
        out.number(node.xattrs.len() as u64);
        for (name, value) in &node.xattrs {
            out.string(name);
            out.string(value);
        }
    }

    /// A problem.
    pub fn problem(&mut self, path: &GuestPath, what: &str) {
        self.out.0.push(PROBLEM);
        self.path(path);
        self.out.string(what.as_bytes());
    }

    /// A filesystem.
    pub fn filesystem(&mut self, fs: &Filesystem) {
        let out = &mut self.out;
        out.0.push(FILESYSTEM);
        out.number(fs.number.into());
        out.string(&fs.identity);
        for text in [&fs.kind, &fs.device, &fs.mounted, &fs.uuid, &fs.label] {
            out.string(text.as_bytes());
        }
        out.number(fs.size);
        out.number(fs.used);
    }
}

/// Hands the items of an unpacked block of a walk to `f`.
///
/// # Errors
/// [`Error::Corrupt`] for what is none, and those of `f`.
pub fn walked(raw: &[u8], mut f: impl FnMut(Walked) -> Result<()>) -> Result<()> {
    let mut from = Decoder::new(raw);
    let mut last: Vec<u8> = Vec::new();
    let (mut mtime, mut ctime, mut ino) = (0i64, 0i64, 0u64);
    let mut path = |from: &mut Decoder<'_>| -> Result<GuestPath> {
        let same = usize::try_from(from.number()?)
            .ok()
            .filter(|n| *n <= last.len())
            .ok_or_else(|| from.bad("a path that begins like a longer one"))?;
        last.truncate(same);
        last.extend_from_slice(from.string()?);
        GuestPath::new(&last)
    };
    while !from.is_empty() {
        let tag = from.byte()?;
        match tag {
            PROBLEM => f(Walked::Problem(path(&mut from)?, from.text()?))?,
            FILESYSTEM => f(Walked::Filesystem(Filesystem {
                number: from.small()?,
                identity: from.string()?.to_vec(),
                kind: from.text()?,
                device: from.text()?,
                mounted: from.text()?,
                uuid: from.text()?,
                label: from.text()?,
                size: from.number()?,
                used: from.number()?,
            }))?,
            ENTRY..=22 => {
                let path = path(&mut from)?;
                let mode = u16::try_from(from.number()? & 0o7777).unwrap_or(0);
                let (uid, gid) = (from.small()?, from.small()?);
                mtime = mtime.wrapping_add(from.signed()?);
                let mtime_nsec = from.small()?;
                ctime = ctime.wrapping_add(from.signed()?);
                let ctime_nsec = from.small()?;
                if mtime_nsec.max(ctime_nsec) >= 1_000_000_000 {
                    return Err(from.bad("a time of too many nanoseconds"));
                }
                let fs = from.small()?;
                ino = ino.wrapping_add(from.signed()?.cast_unsigned());
                let nlink = from.small()?;
                let kind = match tag - ENTRY {
                    0 => Kind::Directory,
                    1 => Kind::File {
                        size: from.number()?.min(i64::MAX.cast_unsigned()),
                    },
                    2 => Kind::Symlink {
                        target: from.string()?.to_vec(),
                    },
                    number @ (3 | 4) => {
                        let (major, minor) = (from.small()?, from.small()?);
                        match number {
                            3 => Kind::Block { major, minor },
                            _ => Kind::Char { major, minor },
                        }
                    }
                    5 => Kind::Fifo,
                    _ => Kind::Socket,
                };
                let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
                for _ in 0..from.number()? {
                    // A string is at least one byte, so that the count cannot outrun the message.
                    let name = from.string()?.to_vec();
                    let value = from.string()?.to_vec();
                    if xattrs.last().is_some_and(|(last, _)| *last >= name) || name.is_empty() {
                        return Err(from.bad("extended attributes out of order"));
                    }
                    xattrs.push((name, value));
                }
                let node = Node {
                    kind,
                    mode,
                    uid,
                    gid,
                    mtime: Time {
                        sec: mtime,
                        nsec: mtime_nsec,
                    },
                    ctime: Time {
                        sec: ctime,
                        nsec: ctime_nsec,
                    },
                    xattrs,
                    id: FileId { fs, ino },
                    nlink,
                };
                f(Walked::Entry(path, node))?;
            }
            other => return Err(from.bad(&format!("an unknown item {other}"))),
        }
    }
    Ok(())
}

/// What the near side wants of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// Its content from this byte on.
    Content(u64),
    /// Its content, unless it has this digest.
    Unless([u8; 32]),
    /// Only its digest.
    Digest,
    /// A delta against what the signature with the job's number was made of.
    Delta,
}

/// A request for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number; answers carry it.
    pub number: u32,
    /// The file.
    pub path: GuestPath,
    /// What of it.
    pub want: Want,
}

/// Packs jobs as blocks; each is told by its difference from the one before.
pub fn encode_jobs(jobs: &[Job]) -> Vec<Vec<u8>> {
    let mut blocks = Vec::new();
    let mut out = Encoder::default();
    let mut last: Vec<u8> = Vec::new();
    for job in jobs {
        if out.0.len() > MAX / 2 {
            blocks.push(pack(&std::mem::take(&mut out).0, 3));
            last.clear();
        }
        out.number(job.number.into());
        let bytes = job.path.as_bytes();
        let same = last.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        out.number(same as u64);
        out.string(bytes.get(same..).unwrap_or_default());
        last = bytes.to_vec();
        match &job.want {
            Want::Content(from) => {
                out.0.push(0);
                out.number(*from);
            }
            Want::Unless(digest) => {
                out.0.push(1);
                out.0.extend_from_slice(digest);
            }
            Want::Digest => out.0.push(2),
            Want::Delta => out.0.push(3),
        }
    }
    if !out.0.is_empty() {
        blocks.push(pack(&out.0, 3));
    }
    blocks
}

/// The jobs of an unpacked block.
///
/// # Errors
/// [`Error::Corrupt`] for what is none.
pub fn decode_jobs(raw: &[u8]) -> Result<Vec<Job>> {
    let mut from = Decoder::new(raw);
    let mut last: Vec<u8> = Vec::new();
    let mut jobs = Vec::new();
    while !from.is_empty() {
        let number = from.small()?;
        let same = usize::try_from(from.number()?)
            .ok()
            .filter(|n| *n <= last.len())
            .ok_or_else(|| from.bad("a path that begins like a longer one"))?;
        last.truncate(same);
        last.extend_from_slice(from.string()?);
        let path = GuestPath::new(&last)?;
        let want = match from.byte()? {
            0 => Want::Content(from.number()?),
            1 => Want::Unless(from.array()?),
            2 => Want::Digest,
            3 => Want::Delta,
            other => return Err(from.bad(&format!("an unknown wish {other}"))),
        };
        jobs.push(Job { number, path, want });
    }
    Ok(jobs)
}

/// A file as it was when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Got {
    /// Bytes that were read.
    pub len: u64,
    /// BLAKE3 of all of them.
    pub digest: [u8; 32],
    /// Inode number.
    pub ino: u64,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Time of the last change of the inode.
    pub ctime: Time,
    /// True if it changed each time that it was read.
    pub torn: bool,
}

/// Why a file could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is not there any more.
    Vanished,
    /// Something else is there now.
    Replaced,
    /// The user may not.
    Denied,
    /// Anything else.
    Other,
}

/// An item of a DATA block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item<'a> {
    /// The next bytes of a content or a delta; `at` is where they lie in the unpacked block.
    Data {
        /// Which job.
        job: u32,
        /// The bytes.
        bytes: &'a [u8],
        /// Offset in the block.
        at: u32,
    },
    /// The next bytes of a content are zeros.
    Hole {
        /// Which job.
        job: u32,
        /// How many.
        len: u64,
    },
    /// The content changed while it was read, and begins again.
    Again {
        /// Which job.
        job: u32,
    },
    /// The job is done. `sent` is false if only the digest was.
    End {
        /// Which job.
        job: u32,
        /// The file.
        got: Got,
        /// True if content or delta stand before this.
        sent: bool,
    },
    /// The job failed.
    Failed {
        /// Which job.
        job: u32,
        /// Why.
        why: Why,
        /// The same in words.
        what: String,
    },
}

impl Item<'_> {
    /// The number of its job.
    pub fn job(&self) -> u32 {
        match self {
            Self::Data { job, .. }
            | Self::Hole { job, .. }
            | Self::Again { job }
            | Self::End { job, .. }
            | Self::Failed { job, .. } => *job,
        }
    }

    /// Appends it to a block.
    pub fn encode(&self, out: &mut Encoder) {
        match self {
            Self::Data { job, bytes, .. } => {
                out.0.push(1);
                out.number((*job).into());
                out.string(bytes);
            }
            Self::Hole { job, len } => {
                out.0.push(2);
                out.number((*job).into());
                out.number(*len);
            }
            Self::Again { job } => {
                out.0.push(3);
                out.number((*job).into());
            }
            Self::End { job, got, sent } => {
                out.0.push(4);
                out.number((*job).into());
                got.encode(out);
                out.number((*sent).into());
            }
            Self::Failed { job, why, what } => {
                out.0.push(5);
                out.number((*job).into());
                out.0.push(match why {
                    Why::Vanished => 0,
                    Why::Replaced => 1,
                    Why::Denied => 2,
                    Why::Other => 3,
                });
                out.string(what.as_bytes());
            }
        }
    }
}

impl Got {
    /// Appends it.
    pub fn encode(&self, out: &mut Encoder) {
        out.number(self.len);
        out.0.extend_from_slice(&self.digest);
        out.number(self.ino);
        out.number(self.mode.into());
        out.number(self.uid.into());
        out.number(self.gid.into());
        out.time(self.mtime);
        out.time(self.ctime);
        out.number(self.torn.into());
    }

    /// Takes one off.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is cut off.
    pub fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self {
            len: from.number()?,
            digest: from.array()?,
            ino: from.number()?,
            mode: u16::try_from(from.number()? & 0o7777).unwrap_or(0),
            uid: from.small()?,
            gid: from.small()?,
            mtime: from.time()?,
            ctime: from.time()?,
            torn: from.number()? != 0,
        })
    }
}

/// Hands the items of an unpacked DATA block to `f`.
///
/// # Errors
/// [`Error::Corrupt`] for what is none, and those of `f`.
pub fn items(raw: &[u8], mut f: impl FnMut(Item<'_>) -> Result<()>) -> Result<()> {
    let mut from = Decoder::new(raw);
    while !from.is_empty() {
        let tag = from.byte()?;
        let job = from.small()?;
        f(match tag {
            1 => {
                let bytes = from.string()?;
                let at = u32::try_from(from.at() - bytes.len()).unwrap_or(u32::MAX);
                Item::Data { job, bytes, at }
            }
            2 => Item::Hole {
                job,
                len: from.number()?,
            },
            3 => Item::Again { job },
            4 => Item::End {
                job,
                got: Got::decode(&mut from)?,
                sent: from.number()? != 0,
            },
            5 => Item::Failed {
                job,
                why: match from.byte()? {
                    0 => Why::Vanished,
                    1 => Why::Replaced,
                    2 => Why::Denied,
                    _ => Why::Other,
                },
                what: from.text()?,
            },
            other => return Err(from.bad(&format!("an unknown item {other}"))),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_there_and_back() {
        for n in [
            0,
            1,
            127,
            128,
            300,
            u64::from(u32::MAX),
            i64::MAX.cast_unsigned(),
            u64::MAX,
        ] {
            let mut out = Encoder::default();
            out.number(n);
            out.signed(n.cast_signed());
            let mut from = Decoder::new(&out.0);
            assert_eq!(from.number().unwrap(), n);
            assert_eq!(from.signed().unwrap(), n.cast_signed());
            assert!(from.is_empty() && from.number().is_err());
        }
        assert!(Decoder::new(&[0xff; 10]).number().is_err());
        assert!(Decoder::new(&[0xff; 3]).number().is_err());
        assert!(Decoder::new(&[5, 1]).string().is_err());
    }

    #[test]
    fn frames_are_checked() {
        let bytes = frame(kind::DATA, b"hello");
        let mut buf = Vec::new();
        let mut from = bytes.as_slice();
        assert_eq!(read_frame(&mut from, &mut buf).unwrap(), Some(kind::DATA));
        assert_eq!(buf, b"hello");
        assert_eq!(read_frame(&mut from, &mut buf).unwrap(), None);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(read_frame(&mut bad.as_slice(), &mut buf).is_err(), "byte {at}");
            if at > 0 {
                let e = read_frame(&mut bytes.get(..at).unwrap(), &mut buf).unwrap_err();
                assert!(matches!(e, Error::Network { .. }));
            }
        }
        let huge = u32::MAX.to_le_bytes();
        assert!(matches!(
            read_frame(&mut [&huge[..], &[1]].concat().as_slice(), &mut buf),
            Err(Error::Corrupt { .. })
        ));
    }

    #[test]
    fn blocks_have_bounds() {
        let raw = vec![7; 100_000];
        let packed = pack(&raw, 1);
        assert!(packed.len() < 1000);
        assert_eq!(unpack(&packed).unwrap(), raw);
        assert_eq!(unpack(&pack(b"x", 1)).unwrap(), b"x");
        let mut lie = Encoder(vec![1]);
        lie.number(10);
        lie.0.extend(zstd::bulk::compress(&raw, 1).unwrap());
        assert!(unpack(&lie.0).is_err());
        let mut lie = Encoder(vec![0]);
        lie.number(1 << 40);
        assert!(unpack(&lie.0).is_err());
    }

    fn node(kind: Kind) -> Node {
        Node {
            kind,
            mode: 0o4755,
            uid: 1000,
            gid: u32::MAX,
            mtime: Time {
                sec: -5,
                nsec: 999_999_999,
            },
            ctime: Time {
                sec: i64::MAX,
                nsec: 1,
            },
            xattrs: vec![
                (b"security.capability".to_vec(), vec![0; 20]),
                (b"user.x".to_vec(), vec![]),
            ],
            id: FileId { fs: 3, ino: u64::MAX },
            nlink: 2,
        }
    }

    #[test]
    fn a_walk_there_and_back() {
        let kinds = [
            Kind::Directory,
            Kind::File { size: 1 << 40 },
            Kind::Symlink {
                target: b"\xff\n".to_vec(),
            },
            Kind::Block { major: 8, minor: 1 },
            Kind::Char { major: 1, minor: 3 },
            Kind::Fifo,
            Kind::Socket,
        ];
        let mut encoder = WalkEncoder::default();
        let mut all = Vec::new();
        for (n, kind) in kinds.into_iter().enumerate() {
            let path = GuestPath::new(format!("/a/dir-{n}").as_bytes()).unwrap();
            encoder.entry(&path, &node(kind.clone()));
            all.push(Walked::Entry(path, node(kind)));
        }
        encoder.problem(&GuestPath::root(), "no");
        all.push(Walked::Problem(GuestPath::root(), "no".into()));
        let fs = Filesystem {
            number: 7,
            kind: "ext4".into(),
            ..Filesystem::default()
        };
        encoder.filesystem(&fs);
        all.push(Walked::Filesystem(fs));
        let raw = encoder.take();
        let mut found = Vec::new();
        walked(&raw, |item| {
            found.push(item);
            Ok(())
        })
        .unwrap();
        assert_eq!(found, all);
        for len in 0..raw.len() {
            // Cut anywhere: an error, or the items before it.
            let _ = walked(&raw[..len], |_| Ok(()));
        }
    }

    #[test]
    fn jobs_and_items_there_and_back() {
        let path = |text: &str| GuestPath::new(text.as_bytes()).unwrap();
        let jobs: Vec<Job> = [
            ("/etc/a", Want::Content(7)),
            ("/etc/b", Want::Unless([9; 32])),
            ("/", Want::Digest),
            ("/var/lib/x", Want::Delta),
        ]
        .into_iter()
        .zip(1..)
        .map(|((p, want), number)| Job {
            number,
            path: path(p),
            want,
        })
        .collect();
        let blocks = encode_jobs(&jobs);
        assert_eq!(blocks.len(), 1);
        assert_eq!(decode_jobs(&unpack(&blocks[0]).unwrap()).unwrap(), jobs);
        let got = Got {
            len: 5,
            digest: [3; 32],
            ino: 9,
            mode: 0o600,
            uid: 0,
            gid: 1,
            mtime: Time::default(),
            ctime: Time { sec: -1, nsec: 3 },
            torn: true,
        };
        let all = [
            Item::Data {
                job: 1,
                bytes: b"hello",
                at: 3,
            },
            Item::Hole { job: 1, len: 1 << 50 },
            Item::Again { job: 1 },
            Item::End {
                job: 1,
                got,
                sent: true,
            },
            Item::Failed {
                job: 2,
                why: Why::Denied,
                what: "no".into(),
            },
        ];
        let mut out = Encoder::default();
        all.iter().for_each(|item| item.encode(&mut out));
        let mut n = 0;
        items(&out.0, |item| {
            assert_eq!(item, all[n]);
            n += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(n, all.len());
        let hello = Hello {
            build: super::super::build(),
            uid: 0,
            machine: "x86_64".into(),
            kernel: "6.1".into(),
            hostname: "h".into(),
            executable: [1; 32],
            host: [2; 32],
        };
        let mut payload = hello.encode();
        assert_eq!(Hello::decode(&payload).unwrap(), hello);
        payload[8] = 9;
        assert!(matches!(Hello::decode(&payload), Err(Error::Unsupported { .. })));
    }
}
