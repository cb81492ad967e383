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
        let (host, port) = context.address()?;
        // The port is shown too, where it is the default: it may be the wrong one.
        context.url = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
    }
    if let Some(token) = &global.token {
        context.token = Some(token.clone());
    }
    if let Some(ca) = &global.ca {
        context.ca_pem = Some(pem("--ca", ca)?);
        context.origins.ca = Some(format!("--ca {}", ca.display()));
    }
    match (&global.client_cert, &global.client_key) {
        (None, None) => {}
        (Some(certificate), Some(key)) => {
            context.cert_pem = Some(pem("--client-cert", certificate)?);
            context.origins.cert = Some(format!("--client-cert {}", certificate.display()));
            context.key_pem = Some(pem("--client-key", key)?);
            context.origins.key = Some(format!("--client-key {}", key.display()));
        }
        (Some(certificate), None) => {
            return Err(Failure::usage(format!(
                "--client-cert {} needs its key: --client-key FILE",
                certificate.display()
            )));
        }
        (None, Some(key)) => {
            return Err(Failure::usage(format!(
                "--client-key {} needs its certificate: --client-cert FILE",
                key.display()
            )));
        }
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
    let left = global
        .waits()
        .then(|| global.timeout().saturating_sub(SILENCE));
    if let Some(words) = silence(&url, left) {
        note(&words);
    }
    Ok(connecting.await?)
}

/// What is said when a broker did not answer for a while: `left` is for how long it is still waited for, if it
/// is. An end that comes at once says enough.
fn silence(url: &str, left: Option<Duration>) -> Option<String> {
    match left {
        None => Some(format!(
            "{url} does not answer; --wait waits for a broker that is still to come"
        )),
        Some(left) if left < Duration::from_millis(500) => None,
        Some(left) => {
            let left = left.as_secs_f64();
            Some(format!(
                "no connection to {url} yet, trying for {left:.0} s more"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_tried_for_no_time() {
        let words = |left| silence("h:1", left).unwrap_or_default();
        assert_eq!(words(Some(Duration::ZERO)), "");
        assert_eq!(words(Some(Duration::from_millis(499))), "");
        assert!(words(Some(Duration::from_millis(600))).contains("for 1 s more"));
        assert!(words(Some(Duration::from_secs(28))).contains("for 28 s more"));
        assert!(words(None).contains("--wait"));
    }
}
