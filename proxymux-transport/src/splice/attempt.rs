//! Whether splicing works here, tried once, for the checks.
//!
//! Owns [`attempt`]: a byte goes from a socket through a pipe into another one, as a relay's do.

use std::{
    io::{Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
};

use super::{
    Fallback,
    pipes::{FIRST_CAPACITY, Pipes},
};

/// How many bytes a new pipe holds.
///
/// # Errors
///
/// Why relays would copy.
pub fn attempt() -> Result<usize, Fallback> {
    let (mut writer, source) = UnixStream::pair().map_err(|_| Fallback::Descriptors)?;
    let (sink, mut reader) = UnixStream::pair().map_err(|_| Fallback::Descriptors)?;
    let mut pipe = Pipes::new(FIRST_CAPACITY).take(FIRST_CAPACITY)?;
    writer.write_all(b"x").map_err(|_| Fallback::Kernel)?;
    let moved = pipe.fill(source.as_fd(), FIRST_CAPACITY);
    let moved = moved.and_then(|_| pipe.empty(sink.as_fd()));
    match moved {
        Ok(1) => {}
        Ok(_) | Err(_) => return Err(Fallback::Unsupported),
    }
    let mut byte = [0];
    // It is there: the splice has said so.
    reader.read_exact(&mut byte).map_err(|_| Fallback::Kernel)?;
    Ok(pipe.capacity())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_splices() {
        assert_eq!(attempt(), Ok(FIRST_CAPACITY));
    }
}
