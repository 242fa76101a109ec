//! Connections that may not hold the server up: how long a client may take, and sockets that keep to it.
//!
//! A socket knows from [`Presence`] whether a request of its own is being answered. While none is, what it reads must come in
//! time: the first byte of a request within `idle`, the end of its headers within `headers` of that byte, however slowly bytes
//! trickle. What it writes may stall for `write`, always. A body has its own limit where it is read.
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the next request on its connection to begin.
    pub idle: Duration,
    /// From a request's first byte to the end of its headers.
    pub headers: Duration,
    /// For a request's body.
    pub body: Duration,
    /// To take anything of what is written to it.
    pub write: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        let [idle, headers, body, write] = [75, 10, 30, 30].map(Duration::from_secs);
        Patience { idle, headers, body, write }
    }
}

/// Requests of one connection: begun, and done.
#[derive(Clone, Default)]
pub struct Presence(Arc<[AtomicU64; 2]>);

/// A request that is being answered, until it is dropped.
pub struct Busy(Presence);

impl Presence {
    pub fn begin(&self) -> Busy {
        self.0[0].fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }
    fn counts(&self) -> [u64; 2] {
        [0, 1].map(|i| self.0[i].load(Ordering::Relaxed))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0[1].fetch_add(1, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, Listener>> for Presence {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Presence {
        stream.io().presence.clone()
    }
}

pub struct Listener {
    inner: TcpListener,
    patience: Patience,
}

impl Listener {
    pub fn new(inner: TcpListener, patience: Patience) -> Listener {
        Listener { inner, patience }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Socket;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Socket, SocketAddr) {
        let (stream, address) = axum::serve::Listener::accept(&mut self.inner).await;
        (Socket::new(stream, self.patience), address)
    }
    fn local_addr(&self) -> Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// What a connection waits for from its client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The request after so many.
    Begin(u64),
    /// The rest of its headers.
    Headers(u64),
}

pub struct Socket {
    stream: TcpStream,
    patience: Patience,
    presence: Presence,
    waiting: Waiting,
    read: Deadline,
    write: Deadline,
}

/// A moment by which something must have happened.
#[derive(Default)]
struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    fn set(&mut self, after: Duration) {
        self.0 = Some(Box::pin(sleep_until(Instant::now() + after)));
    }
    fn poll(&mut self, wakers: &mut Context<'_>) -> Poll<Error> {
        let late = self.0.as_mut().map_or(Poll::Pending, |sleep| sleep.as_mut().poll(wakers));
        late.map(|()| Error::new(ErrorKind::TimedOut, "the client took too long"))
    }
}

impl Socket {
    fn new(stream: TcpStream, patience: Patience) -> Socket {
        let mut read = Deadline::default();
        read.set(patience.idle);
        let (presence, waiting) = (Presence::default(), Waiting::Begin(0));
        Socket { stream, patience, presence, waiting, read, write: Deadline::default() }
    }

    /// What came of writing, or an error once the client has taken nothing for too long.
    fn written(&mut self, done: Poll<Result<usize>>, wakers: &mut Context<'_>) -> Poll<Result<usize>> {
        if done.is_ready() {
            self.write.0 = None;
            // what is written is no idleness
            if matches!(self.waiting, Waiting::Begin(_)) {
                self.read.set(self.patience.idle);
            }
            return done;
        }
        if self.write.0.is_none() {
            self.write.set(self.patience.write);
        }
        self.write.poll(wakers).map(Err)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, wakers: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let socket = self.get_mut();
        let [begun, done] = socket.presence.counts();
        let free = begun == done;
        if free && !matches!(socket.waiting, Waiting::Begin(n) | Waiting::Headers(n) if n == done) {
            socket.waiting = Waiting::Begin(done);
            socket.read.set(socket.patience.idle);
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut socket.stream).poll_read(wakers, buf);
        match read {
            Poll::Ready(Ok(())) if free && buf.filled().len() > before && socket.waiting == Waiting::Begin(done) => {
                socket.waiting = Waiting::Headers(done);
                socket.read.set(socket.patience.headers);
                read
            }
            Poll::Pending if free => socket.read.poll(wakers).map(Err),
            _ => read,
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, wakers: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let socket = self.get_mut();
        let done = Pin::new(&mut socket.stream).poll_write(wakers, bytes);
        socket.written(done, wakers)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        wakers: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let socket = self.get_mut();
        let done = Pin::new(&mut socket.stream).poll_write_vectored(wakers, parts);
        socket.written(done, wakers)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(self: Pin<&mut Self>, wakers: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(wakers)
    }
    fn poll_shutdown(self: Pin<&mut Self>, wakers: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(wakers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that reads nothing: what it is sent fills the buffers between, and then the limit counts.
    #[test]
    fn a_writer_does_not_wait_forever() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let _silent = std::net::TcpStream::connect(address).unwrap();
            let write = Duration::from_millis(300);
            let mut listener = Listener::new(listener, Patience { write, ..Patience::default() });
            let (mut socket, _) = axum::serve::Listener::accept(&mut listener).await;
            let bytes = vec![0; 1 << 16];
            loop {
                let sent = std::future::poll_fn(|wakers| Pin::new(&mut socket).poll_write(wakers, &bytes)).await;
                if let Err(e) = sent {
                    return e;
                }
            }
        });
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
