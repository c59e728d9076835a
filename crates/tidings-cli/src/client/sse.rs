//! Server-sent events.

use reqwest::Response;

use super::Address;
use super::problem::unreachable;
use crate::exit::{Exit, Failure};

/// Longest event accepted, in bytes: a change event names keys of at most 4 KiB each, and few of them.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its name; `message` if it had none.
    pub(crate) name: String,
    /// Its data.
    pub(crate) data: String,
    /// Its id, if it had one.
    pub(crate) id: Option<String>,
}

/// Events as they come in.
#[derive(Debug)]
pub(crate) struct Events {
    response: Response,
    address: Address,
    parser: Parser,
}

impl Events {
    pub(super) fn new(response: Response, address: Address) -> Self {
        Self { response, address, parser: Parser::default() }
    }

    /// The next event, `None` once the node ends the stream. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke, or an event is longer than a node ever sends.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if let Some(event) = self.parser.event() {
                return Ok(Some(event));
            }
            match self.response.chunk().await.map_err(|error| unreachable(&self.address, &error))? {
                Some(chunk) => self.parser.feed(&chunk)?,
                None => return Ok(None),
            }
        }
    }
}

/// Takes bytes as they come and gives whole events.
#[derive(Debug, Default)]
struct Parser {
    buffer: Vec<u8>,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        // Only line feeds end lines from here on; `\r\n` is what proxies may make of them.
        self.buffer.extend(bytes.iter().filter(|byte| **byte != b'\r'));
        if self.buffer.len() > EVENT_BYTES_MAX {
            return Err(Failure::new(Exit::Failed, "the node sent an event that is too long"));
        }
        Ok(())
    }

    /// The next whole event; comments and empty ones are passed over.
    fn event(&mut self) -> Option<Event> {
        loop {
            let end = self.buffer.windows(2).position(|pair| pair == b"\n\n")?;
            let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let event = read(&String::from_utf8_lossy(&block));
            if event.is_some() {
                return event;
            }
        }
    }
}

fn read(block: &str) -> Option<Event> {
    let mut event = Event { name: "message".to_owned(), ..Event::default() };
    let mut data: Vec<&str> = Vec::new();
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut event.name),
            "data" => data.push(value),
            "id" => event.id = Some(value.to_owned()),
            _ => {}
        }
    }
    event.data = data.join("\n");
    (!data.is_empty()).then_some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(chunks: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.feed(chunk).unwrap();
            events.extend(std::iter::from_fn(|| parser.event()));
        }
        events
    }

    #[test]
    fn events_are_put_together_from_chunks() {
        let text =
            b": keep-alive\n\nevent: inserted\r\nid: 7\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\ndata: x\n\n";
        let expected = [
            Event { name: "inserted".into(), data: "{\"a\":\n1}".into(), id: Some("7".into()) },
            Event { name: "message".into(), data: "x".into(), id: None },
        ];
        assert_eq!(events(&[text]), expected);
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(events(&bytes), expected);
    }

    #[test]
    fn an_unfinished_event_is_not_given() {
        assert_eq!(events(&[b"data: x\n"]), []);
    }

    #[test]
    fn an_endless_event_is_an_error() {
        let mut parser = Parser::default();
        assert!(parser.feed(&vec![b'a'; EVENT_BYTES_MAX + 1]).is_err());
    }
}
