//! The way in: a broker, and what can be made from it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::admin::Admin;
use crate::connection::{Connections, Link};
use crate::consumer::ConsumerBuilder;
use crate::context::Context;
use crate::error::Result;
use crate::producer::ProducerBuilder;
use crate::transport;

/// A broker, seen from this process. Cheap to clone: clones share one connection, which is made again
/// when it is lost.
#[derive(Clone, Debug)]
pub struct Client {
    link: Arc<Link>,
    timeout: Duration,
}

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    context: Context,
    client_id: String,
    timeout: Duration,
    idle_timeout: Duration,
    wait: bool,
}

impl ClientBuilder {
    /// What your program calls itself, for example `billing-7`: shown in the broker's logs and in
    /// descriptions of the groups that it is a member of. Default: this library and its version.
    #[must_use]
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = client_id.into();
        self
    }

    /// How long each request may take, and how long a connection that was lost is tried for; retries
    /// included. Default 30 s. A first connection is given up on earlier: see
    /// [`wait_for_broker`](Self::wait_for_broker).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// After how long without a packet from the broker a connection counts as lost; the broker's own
    /// `quic.idle_timeout_ms` may be shorter. A broker that was restarted is noticed at once, without
    /// this. Default 6 s.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Try the first connection too for the whole timeout: for programs that may start before their broker.
    /// Without it, connecting fails at once when nothing listens at the address, and after 5 s without an
    /// answer.
    #[must_use]
    pub fn wait_for_broker(mut self) -> Self {
        self.wait = true;
        self
    }

    /// Connect.
    ///
    /// # Errors
    /// When the context cannot be used, or the broker cannot be reached in time or refuses.
    pub async fn connect(self) -> Result<Client> {
        let timeout = self.timeout;
        let client = self.lazy()?;
        client.link.session(Instant::now() + timeout).await?;
        Ok(client)
    }

    /// A client that connects when it is first used.
    ///
    /// # Errors
    /// When the context cannot be used.
    pub fn lazy(self) -> Result<Client> {
        Ok(Client {
            link: Arc::new(Link::new(
                self.context,
                self.client_id,
                self.idle_timeout,
                self.wait,
            )?),
            timeout: self.timeout,
        })
    }
}

/// What the broker said of itself.
#[derive(Clone, Debug)]
pub struct BrokerInfo {
    pub server: String,
    /// Who the broker takes this client for.
    pub principal: String,
    pub shards: u32,
    pub protocol_version: u32,
    pub cluster_id: Vec<u8>,
    pub batch_bytes_max: u32,
    pub in_flight_max: u32,
}

impl Client {
    /// Settings for the broker of a context.
    #[must_use]
    pub fn builder(context: Context) -> ClientBuilder {
        ClientBuilder {
            context,
            client_id: String::new(),
            timeout: Duration::from_secs(30),
            idle_timeout: transport::IDLE_TIMEOUT,
            wait: false,
        }
    }

    /// Connect to the broker of a context.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`].
    pub async fn connect(context: Context) -> Result<Self> {
        Self::builder(context).connect().await
    }

    /// Connect to the broker of a context (its name or file), else of `MILLSTREAM_CONTEXT`, else of
    /// `.millstream/context.toml` here or above, else of the user's current context: see
    /// [`locate`](crate::locate).
    ///
    /// # Errors
    /// When there is no context, and as [`ClientBuilder::connect`].
    pub async fn from_context(context: Option<&Path>) -> Result<Self> {
        Self::connect(Context::find(context)?).await
    }

    /// Settings of a new producer.
    #[must_use]
    pub fn producer(&self) -> ProducerBuilder {
        ProducerBuilder::new(Arc::clone(&self.link))
    }

    /// Settings of a new consumer.
    #[must_use]
    pub fn consumer(&self) -> ConsumerBuilder {
        ConsumerBuilder::new(Arc::clone(&self.link))
    }

    /// Topics, groups, plugins and the broker itself.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.link), self.timeout)
    }

    /// What the broker said of itself when this client connected.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn broker(&self) -> Result<BrokerInfo> {
        let session = self.link.session(Instant::now() + self.timeout).await?;
        let hello = &session.hello;
        Ok(BrokerInfo {
            server: hello.server.clone(),
            principal: hello.principal.clone(),
            shards: hello.shards,
            protocol_version: hello.version,
            cluster_id: hello.cluster_id.to_vec(),
            batch_bytes_max: hello.batch_bytes_max,
            in_flight_max: hello.in_flight_max,
        })
    }

    /// How many connections were made, and why the last one that is gone was lost: for watching, and for
    /// telling a restarted broker ([`Error::source`](std::error::Error::source) is a
    /// `quinn::ConnectionError`, then `Reset`) from a network that went silent.
    #[must_use]
    pub fn connections(&self) -> Connections {
        self.link.connections()
    }

    /// Say goodbye. Close producers and consumers first: what they have under way is lost with the
    /// connection, or repeated over a new one.
    pub async fn close(self) {
        self.link.close().await;
    }
}
