//! The far end of a connection that measures a path, which an agent plays instead of a kubelet.
//!
//! Owns what each end does with the bytes ([`Measure`]), and their form. Leaves to the agent
//! whether it may be played and on which connection, and to the master what is measured with it.
//! Every connection begins with [`OPENING`], which is TLS to whoever looks at first bytes.
//! An end lives as long as its connection: it holds one buffer, and waits for as long as the other
//! side does nothing, as a kubelet would.

use std::{io, time::Duration};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use proxymux_proto::Measure;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What comes first from the one who measures: a TLS handshake record without content.
pub const OPENING: [u8; 5] = [0x16, 0x03, 0x01, 0, 0];

/// Plays the far end on a connection until that has ended.
///
/// # Errors
///
/// When the connection fails, which is how most measurements end, or does not begin with
/// [`OPENING`], or the end is one that is not known here.
pub async fn play<T>(measure: Measure, mut connection: T) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut opening = OPENING;
    connection.read_exact(&mut opening).await?;
    if opening != OPENING {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "connection does not begin as a measurement does",
        ));
    }
    match measure {
        Measure::Source => source(connection).await,
        Measure::Sink => sink(connection).await,
        Measure::Echo => echo(connection).await,
        Measure::Usage => say(connection, &cpu_time()?.as_micros().to_string()).await,
        Measure::Other(number) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("no end with the number {number}"),
        )),
    }
}

/// The processor time that this process has used so far, in user space and in the kernel.
///
/// # Errors
///
/// Never on Linux (getrusage(2)).
pub fn cpu_time() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
}

async fn source(mut connection: impl AsyncWrite + Unpin) -> io::Result<()> {
    let payload = vec![PAYLOAD; BUFFER_LEN];
    loop {
        connection.write_all(&payload).await?;
    }
}

async fn sink(mut connection: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_LEN];
    let mut total: u64 = 0;
    loop {
        match connection.read(&mut buffer).await? {
            0 => return say(connection, &total.to_string()).await,
            n => total += u64::try_from(n).unwrap_or(u64::MAX),
        }
    }
}

async fn echo(mut connection: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        match connection.read(&mut buffer).await? {
            0 => return connection.shutdown().await,
            n => {
                let read = buffer.get(..n).unwrap_or_default();
                connection.write_all(read).await?;
            }
        }
    }
}

async fn say(mut connection: impl AsyncWrite + Unpin, number: &str) -> io::Result<()> {
    connection.write_all(number.as_bytes()).await?;
    connection.shutdown().await
}

/// As much as a relay moves at once.
const BUFFER_LEN: usize = 64 * 1024;

/// What sources send.
const PAYLOAD: u8 = b'x';

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// The near side of a connection whose far end is played, after the opening.
    async fn far_end(measure: Measure) -> DuplexStream {
        let (mut near, far) = duplex(64 * 1024);
        tokio::spawn(play(measure, far));
        near.write_all(&OPENING).await.unwrap();
        near
    }

    #[tokio::test]
    async fn a_sink_says_how_many_bytes_there_were() {
        let mut near = far_end(Measure::Sink).await;
        near.write_all(&[7; 300_000]).await.unwrap();
        near.shutdown().await.unwrap();
        let mut said = String::new();
        near.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "300000");
    }

    #[tokio::test]
    async fn an_echo_sends_back_what_comes_and_not_the_opening() {
        let mut near = far_end(Measure::Echo).await;
        for _ in 0..3 {
            near.write_all(&[1; 512]).await.unwrap();
            let mut back = [0; 512];
            near.read_exact(&mut back).await.unwrap();
            assert_eq!(back, [1; 512]);
        }
        near.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_source_sends_until_its_reader_leaves() {
        let (mut near, far) = duplex(64 * 1024);
        let playing = tokio::spawn(play(Measure::Source, far));
        near.write_all(&OPENING).await.unwrap();
        near.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
        drop(near);
        assert!(playing.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn usage_is_time_that_grows() {
        let mut spent = Vec::new();
        for _ in 0..2 {
            let mut said = String::new();
            let mut near = far_end(Measure::Usage).await;
            near.read_to_string(&mut said).await.unwrap();
            spent.push(said.parse::<u64>().unwrap());
            let until = cpu_time().unwrap() + Duration::from_millis(20);
            while cpu_time().unwrap() < until {}
        }
        assert!(spent[1] >= spent[0] + 20_000, "{spent:?}");
    }

    #[tokio::test]
    async fn what_does_not_begin_as_a_measurement_is_refused() {
        let (mut near, far) = duplex(64);
        near.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let error = play(Measure::Source, far).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
