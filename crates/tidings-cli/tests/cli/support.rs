//! Running the program, and a node's HTTP API with answers made up by the test.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// What a run of the program left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The one JSON document on stdout.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Checks the exit code, showing everything if it is another one.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }
}

/// The program, without the caller's settings.
pub(crate) fn tidings() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDINGS_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// How long anything may take that should take a second or two.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Looks again and again until there is something, and fails if that takes too long.
#[track_caller]
pub(crate) fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < within, "not within {within:?}: {what}");
        pause(Duration::from_millis(30));
    }
}

/// Lets time pass.
#[allow(clippy::disallowed_methods, reason = "other processes change the state that is waited for")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Runs the program.
pub(crate) fn run(arguments: &[&str]) -> Ran {
    ran(tidings().args(arguments).output().unwrap())
}

/// Runs the program in a directory.
pub(crate) fn run_in(directory: &Path, arguments: &[&str]) -> Ran {
    ran(tidings().current_dir(directory).args(arguments).output().unwrap())
}

pub(crate) fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// An answer of the made-up API.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    pub(crate) fn new(status: u16, body: &str) -> Self {
        Self { status, headers: Vec::new(), body: body.to_owned() }
    }

    pub(crate) fn problem(status: u16, code: &str) -> Self {
        Self::new(status, &format!(r#"{{"code":"{code}","title":"t","detail":"made up","status":{status}}}"#))
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A request as the made-up API got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    /// Method and path with its query.
    pub(crate) line: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

/// A made-up API: answers by method and path, without the query.
pub(crate) struct Api {
    pub(crate) url: String,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Api {
    pub(crate) fn new(answers: &[(&str, Answer)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers: HashMap<String, Answer> =
            answers.iter().map(|(line, answer)| ((*line).to_owned(), answer.clone())).collect();
        let got = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&got);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                serve(stream, &answers, &seen);
            }
        });
        Self { url, got }
    }

    /// Runs the program against it.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        ran(tidings().args(arguments).env("TIDINGS_URL", &self.url).output().unwrap())
    }

    /// The requests so far.
    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, answers: &HashMap<String, Answer>, seen: &Mutex<Vec<Got>>) {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let line = first.rsplit_once(' ').map(|(line, _)| line.to_owned()).unwrap_or_default();
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let path = line.split('?').next().unwrap_or_default().to_owned();
    seen.lock().unwrap().push(Got { line, headers, body: String::from_utf8(body).unwrap() });
    let answer = answers.get(&path).cloned().unwrap_or_else(|| Answer::problem(404, "no_such_route"));
    let mut text = format!(
        "HTTP/1.1 {} X\r\nconnection: close\r\ncontent-length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    // The program may have gone away on purpose.
    let _ = reader.get_mut().write_all(format!("{text}\r\n{}", answer.body).as_bytes());
}
