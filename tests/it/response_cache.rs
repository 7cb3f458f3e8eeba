//! The response cache: what is stored, who gets it, and how often the inner service runs.

mod bounds;
mod changes;
mod cluster;
mod coherence;
mod collapse;
mod confirmed;
mod corpus;
mod costs;
mod example;
mod flat;
mod handle;
mod heads;
mod hostile;
mod joining;
mod leaks;
mod levels;
mod looks;
mod measured;
mod notices;
mod origin;
mod review;
mod rules;
mod sessions;
