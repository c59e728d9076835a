//! `token`: who may use the HTTP API.

use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;
use tidings_http::NewToken;

use crate::args::TokenVerb;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Runs a verb about tokens.
pub(crate) fn run(verb: &TokenVerb, output: &Output) -> Result<(), Failure> {
    let TokenVerb::Create { role, name, payloads } = verb;
    let (entropy, mark) = (random::<32>()?, u32::from_ne_bytes(random()?));
    let name = name.clone().unwrap_or_else(|| format!("{role}-{mark:08x}"));
    let token = NewToken::new(&name, *role, *payloads, entropy)
        .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    if output.is_json() {
        return output.json(&json!({
            "name": name,
            "role": role.as_str(),
            "payloads": payloads,
            "token": token.text(),
            "line": token.line(),
        }));
    }
    output.line(token.text())?;
    output.line(token.line())?;
    output.note(
        "the first line is the token: it is not shown again, and goes into a file of mode 0600 for --token-file\n\
         the second one goes into the file that http.token_file names on each node",
    );
    Ok(())
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Failure::new(Exit::Failed, "this system has no random numbers"))?;
    Ok(bytes)
}
