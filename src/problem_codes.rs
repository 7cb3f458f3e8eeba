#![doc = include_str!("problem_codes.md")]
