//! The ends that this agent plays for a master that measures a path.
//!
//! Owns whether it plays any (`perf`), how many at once, and the connection to one: over loopback
//! TCP, as to a kubelet, so that what is measured is what a kubelet's connection would be. What an
//! end does with bytes is `proxymux_transport::measure`.
//! They cost what a download costs, and give a master nothing that it could not have of the kubelet;
//! that is why they are on unless the configuration says otherwise.

use std::{io, net::Ipv4Addr, sync::Arc};

use proxymux_proto::Measure;
use proxymux_transport::{measure, socket};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::config::OnOff;

/// The ends for measuring.
#[derive(Debug)]
pub(crate) struct FarEnds {
    perf: OnOff,
    room: Arc<Semaphore>,
}

impl FarEnds {
    pub(crate) fn new(perf: OnOff) -> Self {
        Self {
            perf,
            room: Arc::new(Semaphore::new(MAX_ENDS)),
        }
    }

    pub(crate) fn is_off(&self) -> bool {
        self.perf == OnOff::Off
    }

    /// Connects to a new end, which ends with the connection.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::ResourceBusy`] when there are [`MAX_ENDS`] already; else what the kernel says.
    pub(crate) async fn connect(&self, measure: Measure) -> io::Result<TcpStream> {
        let place = Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            let text = format!("{MAX_ENDS} ends for measuring are in use");
            io::Error::new(io::ErrorKind::ResourceBusy, text)
        })?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let connection = TcpStream::connect(listener.local_addr()?).await?;
        let ours = connection.local_addr()?;
        let end = loop {
            // Anybody on this host may have found the port meanwhile.
            let (end, from) = listener.accept().await?;
            if from == ours {
                break end;
            }
        };
        socket::prepare_relayed(&end)?;
        tokio::spawn(async move {
            let outcome = measure::play(measure, end).await;
            // A master that has measured enough leaves without a word.
            tracing::debug!(?measure, ?outcome, "end for measuring has ended");
            drop(place);
        });
        Ok(connection)
    }
}

/// At once; a measurement uses two, and several masters may measure.
const MAX_ENDS: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proxymux_transport::measure::OPENING;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_end_is_played_and_its_place_is_free_afterwards() {
        let ends = FarEnds::new(OnOff::On);
        let mut connection = ends.connect(Measure::Echo).await.unwrap();
        connection.write_all(&OPENING).await.unwrap();
        connection.write_all(b"x").await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'x');
        assert_eq!(ends.room.available_permits(), MAX_ENDS - 1);

        drop(connection);

        let all = u32::try_from(MAX_ENDS).unwrap();
        let free = tokio::time::timeout(Duration::from_secs(20), ends.room.acquire_many(all));
        drop(free.await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn there_are_only_so_many() {
        let ends = FarEnds::new(OnOff::On);
        let mut held = Vec::new();
        for _ in 0..MAX_ENDS {
            held.push(ends.connect(Measure::Source).await.unwrap());
        }
        let error = ends.connect(Measure::Source).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(error.to_string(), "16 ends for measuring are in use");
    }
}
