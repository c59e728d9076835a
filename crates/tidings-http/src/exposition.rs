//! Reads what `/metrics` says: the text format of Prometheus and OpenMetrics, as far as nodes write it.

/// One line: a value of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    /// Its name, suffix included.
    pub name: &'a str,
    /// Its labels, in the order of the text.
    pub labels: Vec<(&'a str, String)>,
    /// Its value.
    pub value: f64,
}

/// The samples of a text, in its order. What is none is passed over.
pub fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, labels, rest) = series(line)?;
        let value = rest.strip_prefix(' ')?.split(' ').next()?.parse().ok()?;
        Some(Sample { name, labels, value })
    })
}

/// The sum of the samples with this name, and, where it goes on `{label="text",…}`, with these labels among theirs;
/// `None` if there is none.
#[must_use]
pub fn sum(text: &str, wanted: &str) -> Option<f64> {
    let (name, labels, _) = series(wanted)?;
    let matching = samples(text)
        .filter(|sample| sample.name == name && labels.iter().all(|label| sample.labels.contains(label)));
    matching.map(|sample| sample.value).reduce(|sum, value| sum + value)
}

type Series<'a> = (&'a str, Vec<(&'a str, String)>, &'a str);

/// Name, labels, and what follows them.
fn series(text: &str) -> Option<Series<'_>> {
    let end = text.find(['{', ' ']).unwrap_or(text.len());
    let (name, mut rest) = text.split_at(end);
    let mut labels = Vec::new();
    if let Some(first) = rest.strip_prefix('{') {
        rest = first;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquoted(quoted)?;
            labels.push((label, value));
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    (!name.is_empty()).then_some((name, labels, rest))
}

/// The text up to the closing quotation mark, without its escapes, and what follows.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            (_, other) => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = concat!(
        "# TYPE a counter\n",
        "a_total{x=\"} 9\",y=\"1\"} 2\n",
        "a_total{x=\"q\\\"u,o\\\\t\\ne\",} 3.0 1700000000\n",
        "a_total_b 7\nb 4\nc +Inf\nbroken{x=\"\nbroken\nbroken x\n",
        "# EOF\n",
    );

    #[test]
    fn a_sum_is_that_of_its_series_and_of_no_other() {
        assert_eq!(sum(TEXT, "a_total"), Some(5.0));
        assert_eq!(sum(TEXT, "a_total{y=\"1\"}"), Some(2.0));
        assert_eq!(sum(TEXT, "a_total{x=\"} 9\",y=\"1\"}"), Some(2.0));
        assert_eq!(sum(TEXT, "b"), Some(4.0));
        assert_eq!(sum(TEXT, "c"), Some(f64::INFINITY));
        for none in ["a", "a_total{y=\"2\"}", "b{x=\"1\"}", "broken", ""] {
            assert_eq!(sum(TEXT, none), None, "{none}");
        }
    }

    #[test]
    fn labels_come_without_their_escapes() {
        let labels: Vec<_> = samples(TEXT).map(|sample| sample.labels).collect();
        assert_eq!(labels.len(), 5);
        assert_eq!(labels[0], [("x", "} 9".to_owned()), ("y", "1".to_owned())]);
        assert_eq!(labels[1], [("x", "q\"u,o\\t\ne".to_owned())]);
    }
}
