//! `context …`: brokers under names, in the user's configuration folder.

use millstream_client::{Context, Contexts, locate};
use serde_json::json;

use crate::Global;
use crate::connect::overlay;
use crate::exit::{Failure, Outcome};
use crate::output::Table;

/// Keep brokers under names: add, list, use, show, remove
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Keep a broker under a name: that of --url, --ca, --token, --client-cert and --client-key, or that
    /// of another context, changed by these
    #[command(after_help = "\
Examples:
  millstream context add prod --url broker.example:7411 --ca ca.pem --token \"$TOKEN\"
  millstream context add test --context /var/lib/millstream/context.toml
  millstream context use prod")]
    Add {
        /// Name of the context.
        name: String,
        /// Name to look for in the broker's certificate, when it is not the URL's host.
        #[arg(long, value_name = "HOST")]
        server_name: Option<String>,
        /// Replace a context of this name.
        #[arg(long)]
        replace: bool,
        /// Use it from now on.
        #[arg(long = "use")]
        select: bool,
    },
    /// List the names; * is the one in use
    #[command(after_help = "Example:\n  millstream context list")]
    List,
    /// Use this one wherever nothing else says which
    #[command(after_help = "\
Example:
  millstream context add here --context .millstream/context.toml --replace
  millstream context use here")]
    Use {
        /// Name of the context.
        name: String,
    },
    /// Show which context is used here, and what it says; keys and tokens are not shown
    #[command(after_help = "\
Examples:
  millstream context show
  millstream context show .millstream/context.toml")]
    Show {
        /// Name of a context, or a file. Default: the one that is used here.
        name: Option<std::path::PathBuf>,
    },
    /// Forget a name
    #[command(after_help = "\
Example:
  millstream context add old --url broker.example:7411 --ca ca.pem --replace
  millstream context remove old")]
    Remove {
        /// Name of the context.
        name: String,
    },
}

pub(crate) fn run(command: Command, global: &Global) -> Outcome {
    let contexts = Contexts::of_user().ok_or_else(|| {
        Failure::usage("there is no place for contexts: set HOME or XDG_CONFIG_HOME")
    })?;
    let output = global.output;
    match command {
        Command::Add {
            name,
            server_name,
            replace,
            select,
        } => {
            let mut context = match (&global.context, &global.url) {
                (Some(from), _) => Context::load(locate(Some(from))?)?,
                (None, Some(url)) => Context::new(url),
                (None, None) => {
                    return Err(Failure::usage(
                        "which broker? Give --url, or --context with its context file",
                    ));
                }
            };
            overlay(&mut context, global)?;
            context.server_name = server_name.or(context.server_name);
            // One without any certificate is completed by flags where it is used.
            if context.ca_pem.is_some() || context.cert_pem.is_some() {
                context.check()?;
            }
            let file = contexts.add(&name, &context, replace)?;
            if select {
                contexts.select(&name)?;
            }
            let text = format!("{name} is kept in {}", file.display());
            output.show(text, &json!({ "name": name, "file": file, "used": select }))
        }
        Command::List => {
            let current = contexts.current();
            let mut table = Table::new(["", "NAME", "URL"]);
            let mut list = Vec::new();
            for name in contexts.names()? {
                let used = current.as_deref() == Some(&name);
                // One that cannot be read is listed all the same, with the reason.
                let url = match Context::load(contexts.file(&name)?) {
                    Ok(context) => context.url,
                    Err(error) => error.to_string(),
                };
                list.push(json!({ "name": name, "url": url, "used": used }));
                table.row([if used { "*" } else { "" }.into(), name, url]);
            }
            let text = if table.is_empty() {
                "no contexts: `millstream context add --help`".into()
            } else {
                table.to_string()
            };
            output.list(text, list)
        }
        Command::Use { name } => {
            contexts.select(&name)?;
            output.show(
                format!("{name} is used from now on"),
                &json!({ "used": name }),
            )
        }
        Command::Show { name } => {
            let file = locate(name.as_deref().or(global.context.as_deref()))?;
            let context = Context::load(&file)?;
            let has = |set: bool| if set { "yes" } else { "no" };
            let (ca, certificate, token) = (
                context.ca_pem.is_some(),
                context.cert_pem.is_some(),
                context.token.is_some(),
            );
            let text = format!(
                "file                {}\nurl                 {}\nserver name         {}\nauthority           {}\n\
                 client certificate  {}\ntoken               {}",
                file.display(),
                context.url,
                context.server_name.as_deref().unwrap_or("as in the url"),
                has(ca),
                has(certificate),
                has(token),
            );
            let json = json!({
                "file": file, "url": context.url, "server_name": context.server_name,
                "ca": ca, "client_certificate": certificate, "token": token,
            });
            output.show(text, &json)
        }
        Command::Remove { name } => {
            if !contexts.remove(&name)? {
                return Err(Failure::failed(format!("there is no context `{name}`")));
            }
            output.show(format!("removed {name}"), &json!({ "removed": name }))
        }
    }
}
