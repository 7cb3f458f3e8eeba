//! Where a setting comes from: an option wins over its variable, and that over the default.
//!
//! Try it: `CLINIC_LISTEN=127.0.0.1:8081 cargo run --example clinic -- --listen 127.0.0.1:8082`
//!
//! Proof: `every_option_has_a_variable_and_wins_over_it`

/// The command line first, then the environment, then the default.
pub struct Given<'a> {
    pub arguments: Vec<(String, String)>,
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Given<'_> {
    pub fn or(&self, name: &str, variable: &str, default: impl FnOnce() -> String) -> String {
        let argument = self
            .arguments
            .iter()
            .rev()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.clone());
        argument
            .or_else(|| (self.variable)(variable))
            .unwrap_or_else(default)
    }

    /// A secret: an empty one is nobody's, for anybody has it.
    pub fn secret(&self, name: &str, default: impl FnOnce() -> String) -> Result<String, String> {
        let secret = self.or(name, &variable_of(name), default);
        if secret.is_empty() {
            return Err(format!("{name} is empty"));
        }
        Ok(secret)
    }

    /// A number from 1 to `most`.
    pub fn number(&self, name: &str, default: u64, most: u64) -> Result<u64, String> {
        let said = self.or(name, &variable_of(name), || default.to_string());
        let number = said.parse().ok();
        let number = number.filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| format!("{name} wants 1 to {most}"))
    }
}

/// The variable of an option that has no name of old: `--cron-secret` is `CLINIC_CRON_SECRET`.
fn variable_of(name: &str) -> String {
    let words = name.trim_start_matches('-').replace('-', "_");
    format!("CLINIC_{}", words.to_ascii_uppercase())
}

/// How the name of a store begins.
pub const STORES: [&str; 8] = [
    "memory:",
    "redis://",
    "redis+unix:",
    "redis+sentinel://",
    "redis+cluster://",
    "rediss://",
    "rediss+sentinel://",
    "rediss+cluster://",
];

/// How the name of a database begins.
pub const DATABASES: [&str; 3] = ["sqlite:", "postgres://", "postgresql://"];

/// A secret that nobody else has: for one process by itself.
pub fn random_secret() -> String {
    uuid::Uuid::new_v4().to_string() + &uuid::Uuid::new_v4().to_string()
}
