//! A TCP proxy that a test can cut, block, slow down, freeze, or make swallow replies.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Stands before a server; all its tasks end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    rules: Arc<Rules>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Rules {
    refusing: AtomicBool,
    swallowing: AtomicBool,
    /// Replies left until all connections are cut; 0 for never.
    cutting_at_reply: AtomicU64,
    /// Bytes of the reply at which they are cut that still pass.
    passing: AtomicU64,
    delay_ms: AtomicU64,
    connections: AtomicU64,
    requests: AtomicU64,
    round_trips: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    /// Connections with a number of at most this are over.
    cut: watch::Sender<u64>,
    /// Connections with a number of at most this carry nothing any more, and nobody is told.
    frozen: AtomicU64,
}

impl Proxy {
    /// Starts a proxy before `server`.
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let rules = Arc::new(Rules {
            refusing: AtomicBool::default(),
            swallowing: AtomicBool::default(),
            cutting_at_reply: AtomicU64::default(),
            passing: AtomicU64::default(),
            delay_ms: AtomicU64::default(),
            connections: AtomicU64::default(),
            requests: AtomicU64::default(),
            round_trips: AtomicU64::default(),
            bytes_up: AtomicU64::default(),
            bytes_down: AtomicU64::default(),
            cut: watch::Sender::new(0),
            frozen: AtomicU64::default(),
        });
        let accepting = tokio::spawn(accept(listener, server, Arc::clone(&rules)));
        Self {
            address,
            rules,
            accepting,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections at once; new ones are accepted.
    pub fn cut(&self) {
        self.rules.cut_all();
    }

    /// Lets the next request through, then drops its reply and ends all connections.
    pub fn cut_at_next_reply(&self) {
        self.cut_at_reply(1);
    }

    /// Lets the next request and so many bytes of its reply through, then ends all connections.
    pub fn cut_within_next_reply(&self, bytes: u64) {
        self.rules.passing.store(bytes, Ordering::SeqCst);
        self.cut_at_reply(1);
    }

    /// Lets requests through, then drops the `nth` piece that the server answers and ends all connections;
    /// 0 calls it off.
    pub fn cut_at_reply(&self, nth: u64) {
        self.rules.cutting_at_reply.store(nth, Ordering::SeqCst);
    }

    /// Says whether such a cut is still to come.
    pub fn will_cut(&self) -> bool {
        self.rules.cutting_at_reply.load(Ordering::SeqCst) > 0
    }

    /// Silences the connections there are, as a firewall does that forgot them; new ones work.
    pub fn freeze(&self) {
        self.rules
            .frozen
            .store(self.connections(), Ordering::SeqCst);
    }

    /// Ends all connections, and each new one at once, until told otherwise.
    pub fn refuse(&self, refusing: bool) {
        self.rules.refusing.store(refusing, Ordering::SeqCst);
        if refusing {
            self.cut();
        }
    }

    /// Passes requests on, but drops what the server answers.
    pub fn swallow_replies(&self, swallowing: bool) {
        self.rules.swallowing.store(swallowing, Ordering::SeqCst);
    }

    /// Delays each request.
    pub fn delay(&self, delay: Duration) {
        let delay = delay.as_millis() as u64;
        self.rules.delay_ms.store(delay, Ordering::SeqCst);
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> u64 {
        self.rules.connections.load(Ordering::SeqCst)
    }

    /// How many pieces clients have sent so far.
    pub fn requests(&self) -> u64 {
        self.rules.requests.load(Ordering::SeqCst)
    }

    /// How many times a client has spoken after it was answered, or for the first time.
    pub fn round_trips(&self) -> u64 {
        self.rules.round_trips.load(Ordering::SeqCst)
    }

    /// How many bytes came from clients.
    pub fn bytes_up(&self) -> u64 {
        self.rules.bytes_up.load(Ordering::SeqCst)
    }

    /// How many bytes came from the server.
    pub fn bytes_down(&self) -> u64 {
        self.rules.bytes_down.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.accepting.abort();
    }
}

impl Rules {
    fn cut_all(&self) {
        let last = self.connections.load(Ordering::SeqCst);
        self.cut.send_replace(last);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, rules: Arc<Rules>) {
    while let Ok((client, _)) = listener.accept().await {
        if rules.refusing.load(Ordering::SeqCst) {
            continue;
        }
        let number = rules.connections.fetch_add(1, Ordering::SeqCst) + 1;
        let rules = Arc::clone(&rules);
        tokio::spawn(async move {
            let mut cut = rules.cut.subscribe();
            tokio::select! {
                _ = cut.wait_for(|last| number <= *last) => {}
                _ = carry(client, server, &rules, number) => {}
            }
        });
    }
}

async fn carry(
    client: TcpStream,
    server: SocketAddr,
    rules: &Rules,
    number: u64,
) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let answered = AtomicBool::new(true);
    tokio::select! {
        done = carry_up(from_client, to_server, rules, number, &answered) => done,
        done = carry_down(from_server, to_client, rules, number, &answered) => done,
    }
}

async fn carry_up(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    rules: &Rules,
    number: u64,
    answered: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1_024];
    while let length @ 1.. = client.read(&mut buffer).await? {
        rules.requests.fetch_add(1, Ordering::SeqCst);
        rules.bytes_up.fetch_add(length as u64, Ordering::SeqCst);
        if answered.swap(false, Ordering::SeqCst) {
            rules.round_trips.fetch_add(1, Ordering::SeqCst);
        }
        if number <= rules.frozen.load(Ordering::SeqCst) {
            continue;
        }
        let delay = rules.delay_ms.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        server.write_all(&buffer[..length]).await?;
    }
    Ok(())
}

async fn carry_down(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    rules: &Rules,
    number: u64,
    answered: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1_024];
    while let length @ 1.. = server.read(&mut buffer).await? {
        rules.bytes_down.fetch_add(length as u64, Ordering::SeqCst);
        answered.store(true, Ordering::SeqCst);
        let left =
            rules
                .cutting_at_reply
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                });
        if left == Ok(1) {
            let passing = rules.passing.swap(0, Ordering::SeqCst) as usize;
            client.write_all(&buffer[..passing.min(length)]).await?;
            rules.cut_all();
            break;
        }
        let is_silent = number <= rules.frozen.load(Ordering::SeqCst)
            || rules.swallowing.load(Ordering::SeqCst);
        if !is_silent {
            client.write_all(&buffer[..length]).await?;
        }
    }
    Ok(())
}
