//! `init`: what a first node needs.

use std::path::Path;

use tidings_transport::{Authority, NODE_VALIDITY};

use crate::args::InitArgs;
use crate::exit::{Exit, Failure};
use crate::files::{self, Draft, Present};
use crate::output::Output;
use crate::verbs::certs;

/// Files of one node: certificate, key and configuration.
const NODE_FILES: usize = 3;

/// Directory for certificates, below the one for the configuration.
const CERTIFICATES: &str = "certs";

/// Name of the cluster of an authority that is made without one.
const CLUSTER: &str = "demo";

/// Writes certificates and configuration of a node. An authority that is there issues its certificate, and is never
/// written over.
pub(crate) fn run(args: &InitArgs, output: &Output) -> Result<(), Failure> {
    let directory = args.out.join(CERTIFICATES);
    let is_first = !certs::has_authority(&directory);
    let authority = if is_first {
        Authority::generate(args.cluster.as_deref().unwrap_or(CLUSTER))
            .map_err(|error| certs::cannot("make the authority", &error))?
    } else {
        certs::stored_authority(&directory)?
    };
    let cluster = authority.cluster();
    if let Some(asked) = args.cluster.as_deref().filter(|asked| *asked != cluster) {
        let message =
            format!("the authority in {} is that of cluster {cluster}, not {asked}", directory.display());
        return Err(Failure::new(Exit::Conflict, message).hint("--out names another directory"));
    }
    let file = args.out.join(format!("{}.toml", args.node));
    let mut drafts: Vec<Draft> =
        certs::node_files(&authority, &directory, &args.node, &[], NODE_VALIDITY)?.into();
    drafts.push(Draft::public(file.clone(), configuration(cluster, args.node.as_str())));
    if is_first {
        let authority = certs::authority_files(&authority, &directory);
        files::write(&authority, Present::Kept("another process has just made it: try again"))?;
        drafts.splice(0..0, authority);
    }
    files::write(&drafts[drafts.len() - NODE_FILES..], Present::forced(args.force))?;
    certs::written(&drafts, output)?;
    output.note(next_steps(args, &file, &directory));
    Ok(())
}

fn configuration(cluster: &str, node: &str) -> String {
    format!(
        "# A tidings node. `tidings config default` explains every setting there is.\n\
         [cluster]\n\
         name = \"{cluster}\"\n\
         node_id = \"{node}\"\n\
         listen = \"127.0.0.1:7401\"   # where others reach it: an address of this machine, UDP\n\
         seeds = []                  # some other nodes, once there are any\n\
         \n\
         [tls]                       # relative paths start at this file's directory\n\
         ca = \"{CERTIFICATES}/ca.pem\"\n\
         cert = \"{CERTIFICATES}/{node}.pem\"\n\
         key = \"{CERTIFICATES}/{node}.key\"\n\
         \n\
         [http]\n\
         listen = \"127.0.0.1:7480\"\n\
         \n\
         [[cache]]\n\
         name = \"users\"\n\
         max_capacity = \"64MiB\"\n"
    )
}

fn next_steps(args: &InitArgs, file: &Path, directory: &Path) -> String {
    format!(
        "start it:        tidings node --config {}\n\
         another node:    tidings init --out {} --node ID\n\
         keep to yourself: {}",
        file.display(),
        args.out.display(),
        directory.join("ca.key").display(),
    )
}
