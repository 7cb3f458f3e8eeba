//! Every code that a problem document can carry, and what it asks of the client.
#![doc = include_str!("problem_codes.md")]

/// What the page says of a code: its status, and whether the same request may be sent again.
#[cfg(test)]
pub(crate) fn promised(code: &str) -> Option<(u16, bool)> {
    let start = format!("| `{code}` | ");
    let page = include_str!("problem_codes.md");
    let row = page.lines().find_map(|line| line.strip_prefix(&start))?;
    let mut cells = row.split(" | ");
    Some((cells.next()?.parse().ok()?, cells.next()? != "no"))
}
