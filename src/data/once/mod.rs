//! Values that are used once, and progress that is saved by version.
//!
//! ```
//! use tower_keep::backend::memory::MemoryStore;
//! use tower_keep::data::once::{Expect, Once, Progress, SaveOutcome};
//! use tower_keep::ttl;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = MemoryStore::new();
//! let states: Once<String> = Once::new(store.clone(), "oauth", ttl::OAUTH_STATE);
//! let token = states.issue(&"/after-login".to_owned()).await?;
//! assert_eq!(states.take(&token).await?.map(|taken| taken.value).as_deref(), Some("/after-login"));
//! assert!(states.take(&token).await?.is_none());
//!
//! let forms: Progress<Vec<String>> = Progress::new(store, "form_progress", ttl::FORM_PROGRESS);
//! let saved = forms.save(("u1", "intake"), &vec!["name".to_owned()], Expect::Absent).await?;
//! assert_eq!(saved, SaveOutcome::Saved { version: 1 });
//! // Another tab that has not seen this version overwrites nothing.
//! let late = forms.save(("u1", "intake"), &vec![], Expect::Absent).await?;
//! assert_eq!(late, SaveOutcome::Conflict { version: 1 });
//! # Ok(()) }
//! ```
//!
//! # What holds
//! - Of any number of parallel takes exactly one gets the value. A lost reply burns the token; it is never given twice.
//! - Tokens enter the store as digests only, bound to service, name and owner.
//! - `put` never overwrites. Unknown, used, expired and foreign tokens look alike.
//! - A store that is away is an error, never a local stand-in.
//!
//! # What it does not do
//! It does not tell a used token from an unknown one, nor count attempts at short codes.

mod handle;
mod policy;
mod progress;
pub mod store;
mod token;

pub use handle::{Once, Taken};
pub use progress::{Progress, Saved};
pub use store::{Expect, OnceStore, PutOutcome, SaveOutcome};
pub use token::Token;
