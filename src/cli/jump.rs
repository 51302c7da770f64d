//! `adit jump`: lists and deletes the jump pods that adit has created.

use std::io;

use clap::Subcommand;

use super::{
    Globals, Output,
    place::Place,
    report::{CliError, print, table},
};
use crate::backend::exec::jump_pod::{self, Created};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit jump ls -A\n  adit jump clean -n shop")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// Look in all namespaces
    #[arg(short = 'A', long, global = true)]
    all_namespaces: bool,
    /// Output format [default: text]
    #[arg(short, long, value_enum, global = true)]
    output: Option<Output>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the jump pods
    Ls,
    /// Delete the jump pods of every owner, also those in use
    Clean,
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let place = Place::of(globals)?;
    let cluster = place.cluster().await?;
    let (context, namespace, cluster) = (place.context(), &place.namespace, &cluster);
    let pods = jump_pod::list(cluster, (!args.all_namespaces).then_some(namespace)).await?;
    if let Command::Clean = args.command {
        for pod in &pods {
            jump_pod::delete(cluster, pod).await?;
        }
    }
    match args.output {
        Some(Output::Json) => print(&format!("{}\n", serde_json::to_string_pretty(&pods).map_err(io::Error::other)?)),
        None if pods.is_empty() => print(&match args.all_namespaces {
            true => format!("adit has created no pods in context {context}\n"),
            false => {
                format!(
                    "adit has created no pods in namespace {namespace} of context {context}; -A lists all namespaces\n"
                )
            }
        }),
        None => match args.command {
            Command::Ls => print(&listed(&pods)),
            Command::Clean => {
                print(&pods.iter().map(|pod| format!("deleted {}/{}\n", pod.namespace, pod.name)).collect::<String>())
            }
        },
    }
}

fn listed(pods: &[Created]) -> String {
    let mut rows = vec![["POD", "STATE", "OWNER", "CREATED"].map(str::to_owned).to_vec()];
    rows.extend(pods.iter().map(|pod| {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        vec![format!("{}/{}", pod.namespace, pod.name), pod.state.clone(), or_dash(&pod.owner), or_dash(&pod.created)]
    }));
    table(&rows)
}
