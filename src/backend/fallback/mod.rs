//! A primary store, and a second one for what may be decided locally while it is away.
