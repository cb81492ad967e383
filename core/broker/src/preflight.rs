//! Whether a broker would start with these settings: the one judgement that `millstream config check` prints
//! and [`Broker::start`](crate::Broker::start) obeys.
//!
//! It looks at what the settings name (certificates, the data directory, the address) and changes nothing.
//! Absent: what only a start can find, as a port or a directory that is in use.

use std::net::UdpSocket;
use std::time::{Duration, SystemTime};

use crate::broker::Shared;
use crate::config::Config;
use crate::ports::Transport;
use crate::tls::Validity;
use crate::{Error, directory, tls};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What would be worth a warning, when the broker would start.
///
/// # Errors
/// The first reason why it would not.
pub fn check(config: &Config) -> Result<Vec<String>, Error> {
    config.check()?;
    let certificate = tls::check(config)?;
    directory::check(&config.data, config.shards)?;
    let any_port = (config.listen.ip(), 0);
    UdpSocket::bind(any_port).map_err(|why| Error::listen(Transport::Udp, config.listen, why))?;
    let mut warnings = Vec::new();
    warnings.extend(certificate.and_then(|validity| certificate_warning(config, validity)));
    let by_certificate = config
        .principals
        .iter()
        .find(|principal| principal.token_sha256.is_none());
    if let Some(principal) = by_certificate
        && config.tls.client_ca.is_none()
    {
        warnings.push(format!(
            "`{}` is known by its certificate alone, and no client certificate is taken: set tls.client_ca",
            principal.name
        ));
    }
    Ok(warnings)
}

/// What an operator has to hear of the broker's certificate now, if anything.
pub(crate) fn certificate_warning(config: &Config, validity: Validity) -> Option<String> {
    let path = config.tls.certificate.as_ref()?; // one made here has no end
    let warning = validity.warning(now_s())?;
    Some(format!(
        "the certificate {} {warning}: put a new one in its place and send SIGHUP",
        path.display()
    ))
}

/// Warn of a certificate that ends soon, once a day.
pub(crate) async fn watch_certificate(shared: &Shared) {
    loop {
        tokio::time::sleep(DAY).await;
        let live = shared.live();
        if let Some(warning) = live
            .certificate
            .and_then(|validity| certificate_warning(&live.config, validity))
        {
            tracing::warn!("{warning}");
        }
    }
}

/// Seconds since 1970, as certificates count.
pub(crate) fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs() as i64)
}
