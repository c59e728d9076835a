//! `init`: what a first node needs.

use std::path::Path;

use tidings_transport::{Authority, NODE_VALIDITY};

use crate::args::InitArgs;
use crate::exit::Failure;
use crate::files::{self, Draft};
use crate::output::Output;
use crate::verbs::certs;

/// Directory for certificates, below the one for the configuration.
const CERTIFICATES: &str = "certs";

/// Writes certificates and configuration of a first node.
pub(crate) fn run(args: &InitArgs, output: &Output) -> Result<(), Failure> {
    let directory = args.out.join(CERTIFICATES);
    let authority =
        Authority::generate(&args.cluster).map_err(|error| certs::cannot("make the authority", &error))?;
    let file = args.out.join(format!("{}.toml", args.node));
    let mut drafts: Vec<Draft> = certs::authority_files(&authority, &directory).into();
    drafts.extend(certs::node_files(&authority, &directory, &args.node, &[], NODE_VALIDITY)?);
    drafts.push(Draft::public(file.clone(), configuration(&args.cluster, args.node.as_str())));
    files::write(&drafts, args.force)?;
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
         a second node:   tidings certs issue --dir {} --node ID, then a configuration of its own\n\
         keep to yourself: {}",
        file.display(),
        directory.display(),
        args.out.join(CERTIFICATES).join("ca.key").display(),
    )
}
