//! Texts as people type them: somebody has to be able to read what they say, and the database to keep it.
//!
//! Try it: `curl -i -b jar -X PUT localhost:8080/api/user/profile -H 'content-type: application/json' -d '{"name":" "}'`
//!
//! Proof: `a_text_that_nobody_can_read_is_refused_by_the_name_of_its_field`

use std::ops::RangeInclusive;

use super::Fault;

/// A text of one line.
pub fn line(
    field: &'static str,
    text: &str,
    characters: RangeInclusive<usize>,
) -> Result<(), Fault> {
    checked(field, text, characters, |_| false)
}

/// A text of any number of lines.
pub fn lines(
    field: &'static str,
    text: &str,
    characters: RangeInclusive<usize>,
) -> Result<(), Fault> {
    checked(field, text, characters, |letter| {
        matches!(letter, '\n' | '\r' | '\t')
    })
}

/// What is only blank is empty. Control characters are for screens and databases, and one is the end of a text to some.
fn checked(
    field: &'static str,
    text: &str,
    characters: RangeInclusive<usize>,
    may_be: impl Fn(char) -> bool,
) -> Result<(), Fault> {
    let (least, most) = (*characters.start(), *characters.end());
    if least > 0 && text.trim().is_empty() {
        return Err(Fault::invalid(field, "must not be empty"));
    }
    if !characters.contains(&text.chars().count()) {
        let why = format!("must have {most} characters at most");
        return Err(Fault::invalid(field, &why));
    }
    if text
        .chars()
        .any(|letter| letter.is_control() && !may_be(letter))
    {
        return Err(Fault::invalid(field, "must not have control characters"));
    }
    Ok(())
}
