//! Addresses to listen on, and what is said of texts that are none.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize as _, Deserializer, de::Error as _};

/// Where a broker listens: an IP address of its machine and a port.
///
/// # Errors
/// What is wrong with the text, and what would be right.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let forms = "write 127.0.0.1:7411 (reached from this machine alone), 0.0.0.0:7411 or [::]:7411 (from everywhere)";
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("`{text}` has no port: {forms}"));
    }
    Err(match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_err() => {
            format!("the port of `{host}` is not a number up to 65535: {forms}")
        }
        Some((host, _)) => {
            format!(
                "`{host}` is a name, and a broker listens on an IP address of its machine: {forms}"
            )
        }
        None => format!("`{text}` is not an IP address with a port: {forms}"),
    })
}

/// The same in a settings file or a variable.
pub(super) fn read<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    listen_address(&String::deserialize(from)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_listens_on_addresses() {
        for good in ["127.0.0.1:0", "0.0.0.0:7411", "[::1]:7411"] {
            assert_eq!(listen_address(good), Ok(good.parse().expect("an address")));
        }
        for (wrong, why) in [
            ("nohost:1", "`nohost` is a name"),
            ("127.0.0.1", "`127.0.0.1` has no port"),
            ("::1", "`::1` has no port"),
            ("7411", "`7411` is not an IP address with a port"),
            ("127.0.0.1:http", "the port of `127.0.0.1`"),
        ] {
            let told = listen_address(wrong).expect_err("no address");
            assert!(
                told.contains(why) && told.contains("0.0.0.0:7411"),
                "{told}"
            );
        }
    }

    #[test]
    fn settings_say_the_same() {
        let set = |value: &str| {
            let variable = ("MILLSTREAM_LISTEN".to_owned(), value.to_owned());
            crate::config::Config::load(None, [variable])
        };
        let told = set("nohost:1").expect_err("no address").to_string();
        assert!(
            told.contains("MILLSTREAM_LISTEN") && told.contains("`nohost` is a name"),
            "{told}"
        );
        assert!(set("127.0.0.1:1").is_ok());
    }
}
