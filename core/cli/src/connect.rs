//! From the command line to a connected client, and a runtime to use it on.

use std::future::Future;

use millstream_client::{Client, Context};

use crate::Global;
use crate::exit::{Failure, Outcome};

/// Run a command's future on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no runtime: {error}")))?;
    runtime.block_on(work)
}

/// The context that the command line names.
pub(crate) fn context(global: &Global) -> Outcome<Context> {
    Ok(Context::find(global.context.as_deref())?)
}

/// A connected client.
pub(crate) async fn client(global: &Global) -> Outcome<Client> {
    client_of(context(global)?, global).await
}

/// A connected client of its own for a context.
pub(crate) async fn client_of(context: Context, global: &Global) -> Outcome<Client> {
    let name = concat!("millstream-cli/", env!("CARGO_PKG_VERSION"));
    let client_id = global.client_id.as_deref().unwrap_or(name);
    Ok(Client::builder(context)
        .client_id(client_id)
        .timeout(global.timeout)
        .connect()
        .await?)
}
