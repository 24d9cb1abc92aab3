//! Tars inside of lists that are unpacked while they are read.

use crate::error::Error;
use crate::tar::{Input, Reader};
use std::io::Read;

/// A stream that goes forward by reading.
pub(super) struct Forward<R>(pub(super) R);

impl<R: Read> Read for Forward<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read> Input for Forward<R> {
    fn skip(&mut self, n: u64) -> std::io::Result<()> {
        match std::io::copy(&mut self.0.by_ref().take(n), &mut std::io::sink())? == n {
            true => Ok(()),
            false => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The content of the entry that a [`Reader`] stands at.
pub(super) struct Content<'a, R>(pub(super) &'a mut Reader<R>);

impl<R: Input> Read for Content<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_stored(buf).map_err(Error::into_io)
    }
}
