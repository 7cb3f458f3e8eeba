//! A TCP proxy that a test can cut, block, slow down, or make swallow replies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Stands before a server; all its tasks end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    rules: Arc<Rules>,
    cut: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Rules {
    refusing: AtomicBool,
    swallowing: AtomicBool,
    delay_ms: AtomicU64,
    requests: AtomicU64,
}

impl Proxy {
    /// Starts a proxy before `server`.
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (rules, cut) = (Arc::new(Rules::default()), watch::Sender::new(0));
        let accepting = tokio::spawn(accept(listener, server, Arc::clone(&rules), cut.clone()));
        Self {
            address,
            rules,
            cut,
            accepting,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections at once; new ones are accepted.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Ends all connections and accepts none until told otherwise.
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
        self.rules
            .delay_ms
            .store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// How many pieces clients have sent so far.
    pub fn requests(&self) -> u64 {
        self.rules.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    rules: Arc<Rules>,
    cut: watch::Sender<u64>,
) {
    while let Ok((client, _)) = listener.accept().await {
        if rules.refusing.load(Ordering::SeqCst) {
            continue;
        }
        let (rules, mut cut) = (Arc::clone(&rules), cut.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                _ = cut.changed() => {}
                () = carry(client, server, &rules) => {}
            }
        });
    }
}

async fn carry(client: TcpStream, server: SocketAddr, rules: &Rules) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let up = async {
        let mut buffer = vec![0; 64 * 1_024];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            rules.requests.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(rules.delay_ms.load(Ordering::SeqCst))).await;
            if to_server.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 64 * 1_024];
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            let keep = rules.swallowing.load(Ordering::SeqCst);
            if !keep && to_client.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! { () = up => {} () = down => {} }
}
