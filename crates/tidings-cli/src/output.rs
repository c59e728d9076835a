//! What is printed, and where: data on stdout, everything else on stderr.

use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::args::{Colour, Global};
use crate::exit::{Exit, Failure};

/// Where results, notes and warnings go.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    colour_out: bool,
    colour_err: bool,
}

/// How a word is set off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A heading.
    Bold,
    /// Fine.
    Good,
    /// Needs a look.
    Caution,
    /// Broken.
    Bad,
}

impl Output {
    /// Output as the global options and the environment ask for.
    pub(crate) fn new(global: &Global) -> Self {
        let allowed = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let colour = |terminal: bool| match global.color {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => allowed && terminal,
        };
        Self {
            json: global.json,
            quiet: global.quiet,
            colour_out: colour(io::stdout().is_terminal()),
            colour_err: colour(io::stderr().is_terminal()),
        }
    }

    /// Whether stdout carries JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a progress bar has somebody to look at it.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// Whether stderr takes colours.
    pub(crate) fn colours_errors(&self) -> bool {
        self.colour_err
    }

    /// Prints a value as one line of JSON.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot write the result as JSON: {error}"))
        })?;
        self.line(text)
    }

    /// Prints a line of data.
    pub(crate) fn line(&self, text: impl Display) -> Result<(), Failure> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            // The reader has seen enough (`| head`): nothing to complain about.
            io::ErrorKind::BrokenPipe => Failure::silent(Exit::Ok),
            _ => Failure::new(Exit::Failed, format!("cannot write to stdout: {error}")),
        })
    }

    /// Prints rows under headings, columns aligned. What the cells say is printed [`plain`].
    pub(crate) fn table(&self, headings: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([headings[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let headings: Vec<String> = headings.iter().map(ToString::to_string).collect();
        self.line(self.paint(Style::Bold, &line(&headings)))?;
        rows.iter().try_for_each(|row| self.line(line(row)))
    }

    /// A word of a line on stdout, set off if colours are on.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        painted(self.colour_out, style, text)
    }

    /// Says something in passing on stderr, unless `--quiet`.
    pub(crate) fn note(&self, text: impl Display) {
        if !self.quiet {
            say(format_args!("{text}"));
        }
    }

    /// Warns on stderr; `--quiet` does not silence it.
    pub(crate) fn warn(&self, text: impl Display) {
        say(format_args!("{} {text}", painted(self.colour_err, Style::Caution, "warning:")));
    }

    /// Says on stderr why the program ends.
    pub(crate) fn error(&self, failure: &Failure) {
        if !failure.is_silent() {
            say(format_args!("{} {failure}", painted(self.colour_err, Style::Bad, "error:")));
        }
    }
}

/// A text of somebody else's on one line of a terminal that it cannot control: control characters are escaped.
pub(crate) fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut plain, character| {
        if character.is_control() {
            plain.extend(character.escape_default())
        } else {
            plain.push(character)
        }
        plain
    })
}

/// A line on stderr, if anybody still reads it.
fn say(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn painted(on: bool, style: Style, text: &str) -> String {
    let code = match style {
        Style::Bold => "1",
        Style::Good => "32",
        Style::Caution => "33",
        Style::Bad => "31",
    };
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}
