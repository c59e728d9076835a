//! A consumer for tests that kill it: `consumer ADDRESS NAME` consumes of a node until then.

use anyhow::{Result, bail};
use tidings_tests::api::Api;
use tidings_tests::consumer::consume;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, name] = &arguments[..] else { bail!("ADDRESS NAME") };
    let api = Api::new(address, None)?;
    loop {
        consume(&api, name).await?;
    }
}
