//! A connection's socket, which neither a client that does not read its answer nor one that sends more than is read
//! can hold or lose an answer by.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::limits::{DRAINED_BYTES_MAX, LINGER_TIME, WRITE_BYTES_MIN, WRITE_TIME};

/// Bytes read at a time of what nobody wants.
const DRAIN_BYTES: usize = 8 << 10;

/// A stream whose writes fail once it takes less than [`WRITE_BYTES_MIN`] in [`WRITE_TIME`] of what waits for the other
/// end, and whose shutdown takes what the other end still sends, within limits: closed with bytes that nobody read,
/// the system would throw away what the other end has not read, too.
#[derive(Debug)]
pub(crate) struct Socket<S> {
    stream: S,
    stall: Option<Stall>,
    linger: Option<Linger>,
}

/// The other end did not take all that was there for it.
#[derive(Debug)]
struct Stall {
    deadline: Pin<Box<Sleep>>,
    taken: usize,
}

/// This end has said all that it had to say.
#[derive(Debug)]
struct Linger {
    deadline: Pin<Box<Sleep>>,
    drained: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, stall: None, linger: None }
    }

    /// Judges what came of a write.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Pending => {
                let stall = self
                    .stall
                    .get_or_insert_with(|| Stall { deadline: Box::pin(sleep(WRITE_TIME)), taken: 0 });
                ready!(stall.deadline.as_mut().poll(context));
                Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the client does not read its answer")))
            }
            Poll::Ready(Ok(bytes)) => {
                if let Some(stall) = &mut self.stall {
                    stall.taken += bytes;
                    if stall.taken >= WRITE_BYTES_MIN {
                        self.stall = None;
                    }
                }
                Poll::Ready(Ok(bytes))
            }
            failed => failed,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Called once everything there was is written: the other end keeps up.
        self.stall = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        let linger =
            this.linger.get_or_insert_with(|| Linger { deadline: Box::pin(sleep(LINGER_TIME)), drained: 0 });
        let mut bytes = [0; DRAIN_BYTES];
        while linger.drained < DRAINED_BYTES_MAX && linger.deadline.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => linger.drained += buffer.filled().len(),
                // It has closed its end as well, or is gone.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::{Duration, Instant, advance, timeout};

    use super::*;

    fn pair() -> (Socket<DuplexStream>, DuplexStream) {
        pair_that_holds(4 << 10)
    }

    fn pair_that_holds(bytes: usize) -> (Socket<DuplexStream>, DuplexStream) {
        let (near, far) = duplex(bytes);
        (Socket::new(near), far)
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_for_the_time_of_a_write_is_given_up() {
        let (mut socket, _far) = pair();
        let start = Instant::now();
        let failed = socket.write_all(&[0; 8 << 10]).await.unwrap_err();
        assert_eq!((failed.kind(), start.elapsed()), (ErrorKind::TimedOut, WRITE_TIME));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_too_little_in_that_time_is_given_up_and_who_takes_enough_is_not() {
        for (bytes, enough) in [(1, false), (WRITE_BYTES_MIN / 8, true)] {
            let (mut socket, mut far) = pair_that_holds(WRITE_BYTES_MIN / 4);
            let mut taken = vec![0; bytes];
            let all = vec![0; 4 * WRITE_BYTES_MIN];
            let mut writing = std::pin::pin!(socket.write_all(&all));
            let outcome = loop {
                match timeout(WRITE_TIME / 10, writing.as_mut()).await {
                    Ok(outcome) => break outcome,
                    Err(_) => drop(far.read_exact(&mut taken).await.unwrap()),
                }
            };
            assert_eq!(outcome.is_ok(), enough, "{bytes} bytes at a time");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_keeps_up_may_be_silent_between_two_writes() {
        let (mut socket, mut far) = pair();
        for _ in 0..3 {
            let mut taken = [0; 1_500];
            let (written, read) = tokio::join!(socket.write_all(&[0; 1_500]), far.read_exact(&mut taken));
            assert!(written.is_ok() && read.is_ok());
            socket.flush().await.unwrap();
            advance(3 * WRITE_TIME).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_takes_what_still_comes_until_the_other_end_closes() {
        let (mut socket, mut far) = pair();
        let other = async {
            far.write_all(&[0; 100_000]).await.unwrap();
            let mut answer = String::new();
            far.read_to_string(&mut answer).await.unwrap();
            drop(far);
            answer
        };
        let this = async {
            socket.write_all(b"busy").await.unwrap();
            socket.shutdown().await.unwrap();
        };
        assert_eq!(tokio::join!(other, this).0, "busy");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_whatever_the_other_end_does() {
        let (mut socket, _silent) = pair();
        let start = Instant::now();
        socket.shutdown().await.unwrap();
        assert_eq!(start.elapsed(), LINGER_TIME);

        let (mut socket, mut far) = pair();
        let endless = async {
            let mut sent = 0_usize;
            while far.write_all(&[0; 1_000]).await.is_ok() {
                sent += 1_000;
            }
            sent
        };
        let this = async {
            timeout(Duration::from_secs(60), socket.shutdown()).await.unwrap().unwrap();
            drop(socket);
        };
        let (sent, ()) = tokio::join!(endless, this);
        assert!(sent <= DRAINED_BYTES_MAX + 2 * DRAIN_BYTES, "{sent} bytes");
    }
}
