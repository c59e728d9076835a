//! A real browser: what it shows of a node, and what it lets pages of other sites do.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, timeout};

use crate::guarded::Guarded;

/// How long a browser may take to start, or a page to come, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Speaks the DevTools protocol over descriptors 3 and 4.
const START: &str = "exec chromium --headless --no-sandbox --disable-gpu --no-first-run \
    --disable-background-networking --disable-dev-shm-usage --ignore-certificate-errors --remote-debugging-pipe \
    --user-data-dir=\"$0\" about:blank 3<&0 4>&1 1>&2";

struct Browser {
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: Option<String>,
    next: u64,
    _profile: tempfile::TempDir,
}

impl Browser {
    async fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", START])
            .arg(profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let (session, next) = (None, 1);
        let mut browser = Self { _child: child, input, output, session, next, _profile: profile };
        let targets = browser.call("Target.getTargets", json!({})).await;
        let all = targets["targetInfos"].as_array().unwrap();
        let page = all.iter().find(|target| target["type"] == "page").expect("it has a page");
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        browser
    }

    async fn call(&mut self, method: &str, params: Json) -> Json {
        let id = self.next;
        self.next += 1;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.clone().into();
        }
        let answered = async {
            self.input.write_all(format!("{message}\0").as_bytes()).await.unwrap();
            loop {
                let mut bytes = Vec::new();
                self.output.read_until(0, &mut bytes).await.unwrap();
                let text = bytes.strip_suffix(&[0]).expect("the browser goes on");
                let said: Json = serde_json::from_slice(text).unwrap();
                if said["id"] == id {
                    assert!(said["error"].is_null(), "{method}: {said}");
                    return said["result"].clone();
                }
            }
        };
        timeout(PATIENCE, answered).await.unwrap_or_else(|_| panic!("{method} is not answered"))
    }

    async fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url })).await;
    }

    /// What an expression is on the page. While one page follows another there may be none.
    async fn value(&mut self, expression: &str) -> Json {
        let evaluate = json!({ "expression": expression, "returnByValue": true });
        self.call("Runtime.evaluate", evaluate).await["result"]["value"].clone()
    }

    /// Waits until the page shows something, and says all that it shows.
    async fn shows(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = self.value("document.body ? document.body.innerText : ''").await;
            let shown = shown.as_str().unwrap_or_default().to_owned();
            if shown.contains(wanted) {
                return shown;
            }
            assert!(Instant::now() < deadline, "the page does not show {wanted:?} but: {shown}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_browser_logs_in_over_tls_and_other_sites_pages_cannot_use_its_session() {
    let guarded = Guarded::start().await;
    let base = guarded.stranger.base.clone();
    let mut browser = Browser::start().await;
    browser.open(&base).await;
    browser.shows("Log in").await;
    assert_eq!(browser.value("location.pathname").await, "/login");
    let token = guarded.token("viewer");
    let fill = format!("document.querySelector('#token').value = '{token}'; document.forms[0].submit()");
    browser.value(&fill).await;
    let page = browser.shows("viewer (viewer)").await;
    assert!(page.contains("Members") && page.contains("n1"), "{page}");
    // No script sees the session, not even one of this page.
    assert_eq!(browser.value("document.cookie").await, "");

    let form = format!("<form method=post action={base}/logout></form>evil");
    browser.open(&format!("data:text/html,{form}")).await;
    browser.shows("evil").await;
    browser.value("document.forms[0].submit()").await;
    browser.shows("cross_site").await;
    let framed = format!("<p>evil frame</p><iframe src={base}/></iframe>");
    browser.open(&format!("data:text/html,{framed}")).await;
    browser.shows("evil frame").await;
    browser.open(&base).await;
    browser.shows("viewer (viewer)").await;
    browser.value("document.querySelector('form').submit()").await;
    browser.shows("Log in").await;
    browser.open(&base).await;
    browser.shows("Log in").await;
    guarded.end().await;
}
