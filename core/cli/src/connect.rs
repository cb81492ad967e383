//! From the command line to a connected client, and a runtime to use it on.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use millstream_client::{Client, Context};

use crate::Global;
use crate::exit::{Failure, Outcome};
use crate::output::note;

/// After so long without a connection the user is told.
const SILENCE: Duration = Duration::from_secs(2);

/// Run a command's future on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no runtime: {error}")))?;
    runtime.block_on(work)
}

/// The context that the command line names, with what its flags say instead.
pub(crate) fn context(global: &Global) -> Outcome<Context> {
    let mut context = match (&global.context, &global.url) {
        // A URL alone: the token of another broker is not for this one.
        (None, Some(url)) => Context::new(url),
        (context, _) => Context::find(context.as_deref())?,
    };
    overlay(&mut context, global)?;
    Ok(context)
}

/// Put what the flags say into `context`.
pub(crate) fn overlay(context: &mut Context, global: &Global) -> Outcome {
    if let Some(url) = &global.url {
        context.url.clone_from(url);
        context.address()?;
    }
    if let Some(token) = &global.token {
        context.token = Some(token.clone());
    }
    if let Some(ca) = &global.ca {
        context.ca_pem = Some(pem("--ca", ca)?);
    }
    match (&global.client_cert, &global.client_key) {
        (None, None) => {}
        (Some(certificate), Some(key)) => {
            context.cert_pem = Some(pem("--client-cert", certificate)?);
            context.key_pem = Some(pem("--client-key", key)?);
        }
        _ => return Err(Failure::usage("--client-cert and --client-key go together")),
    }
    Ok(())
}

fn pem(flag: &str, file: &Path) -> Outcome<String> {
    std::fs::read_to_string(file)
        .map_err(|error| Failure::usage(format!("{flag}: cannot read {}: {error}", file.display())))
}

/// A connected client.
pub(crate) async fn client(global: &Global) -> Outcome<Client> {
    client_of(context(global)?, global).await
}

/// A connected client of its own for a context.
pub(crate) async fn client_of(context: Context, global: &Global) -> Outcome<Client> {
    let name = concat!("millstream-cli/", env!("CARGO_PKG_VERSION"));
    let name = global.client_id.as_deref().unwrap_or(name);
    let url = context.url.clone();
    let mut builder = Client::builder(context)
        .client_id(name)
        .timeout(global.timeout());
    if global.waits() {
        builder = builder.wait_for_broker();
    }
    let mut connecting = pin!(builder.connect());
    tokio::select! {
        client = &mut connecting => return Ok(client?),
        () = tokio::time::sleep(SILENCE) => {}
    }
    note(&if global.waits() {
        let left = global.timeout().saturating_sub(SILENCE).as_secs_f64();
        format!("no connection to {url} yet, trying for {left:.0} s more")
    } else {
        format!("{url} does not answer; --wait waits for a broker that is still to come")
    });
    Ok(connecting.await?)
}
