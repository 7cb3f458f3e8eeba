//! One option of a layer: its name, what it takes, and what it does to the layer.

use std::time::Duration;

use http::HeaderName;

/// An option that sets something on `L`.
pub struct Setting<L: 'static> {
    pub name: &'static str,
    /// What it takes, as the help names it; empty for a switch.
    pub value: &'static str,
    pub help: &'static str,
    pub set: fn(L, &str) -> Result<L, String>,
}

/// What an option takes that is never shown.
pub const SECRET: &str = "SECRET";

/// An option as it was given: its name and its value.
pub type Given = (String, String);

/// Applies what was given, in its order.
///
/// # Errors
/// One sentence about the first value that does not fit.
pub fn apply<L>(settings: &[Setting<L>], given: &[Given], mut to: L) -> Result<L, String> {
    for (name, value) in given {
        if let Some(setting) = settings.iter().find(|setting| setting.name == name) {
            to = (setting.set)(to, value).map_err(|why| match setting.value {
                // Not to be repeated on a terminal, or in its log.
                SECRET => format!("{name} {why}"),
                _ => format!("{name} {why}, not {value:?}"),
            })?;
        }
    }
    Ok(to)
}

/// Reads seconds, also with a fraction.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "wants seconds")?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "wants seconds".to_owned())
}

pub fn bytes(text: &str) -> Result<usize, String> {
    text.parse()
        .map_err(|_| "wants a number of bytes".to_owned())
}

pub fn field(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| "wants a field name".to_owned())
}

/// The members of a list with commas.
pub fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|member| !member.is_empty())
}
