//! The scripts: the algorithms' blocks put into the files of the methods, since a function in a script is made anew at
//! each call.

use super::super::super::quota::Algorithm;
use crate::backend::redis::Script;

pub(super) static CHECK_AND_RECORD: Script =
    Script::composed(|| deciding(include_str!("../check_and_record.lua")));
pub(super) static CHECK: Script = Script::composed(|| deciding(include_str!("../check.lua")));
pub(super) static RECORD: Script = Script::composed(|| deciding(include_str!("../record.lua")));
pub(super) static REFUND: Script = Script::composed(|| with_blocks(include_str!("../refund.lua")));
pub(super) static RESET: Script = Script::new(include_str!("../reset.lua"));
pub(super) static BLOCK: Script = Script::new(include_str!("../block.lua"));

/// An algorithm's number in the scripts.
pub(super) const fn number_of(algorithm: Algorithm) -> u8 {
    match algorithm {
        Algorithm::Log => 1,
        Algorithm::Buckets => 2,
        Algorithm::Gcra { .. } => 3,
        Algorithm::Fixed => 4,
        Algorithm::Month => 5,
    }
}

/// Each number's blocks: how a state is found, and how it is charged and told.
const BLOCKS: [(u8, &[&str], &str); 5] = [
    (
        1,
        &[include_str!("../../policy/log.find.lua")],
        include_str!("../../policy/log.settle.lua"),
    ),
    (
        2,
        &[include_str!("../../policy/buckets.find.lua")],
        include_str!("../../policy/buckets.settle.lua"),
    ),
    (
        3,
        &[include_str!("../../policy/gcra.find.lua")],
        include_str!("../../policy/gcra.settle.lua"),
    ),
    (
        4,
        &[include_str!("../../policy/fixed.find.lua")],
        include_str!("../../policy/fixed.settle.lua"),
    ),
    (
        5,
        &[
            include_str!("../../policy/month.find.lua"),
            include_str!("../../policy/fixed.find.lua"),
        ],
        include_str!("../../policy/fixed.settle.lua"),
    ),
];

fn deciding(method: &str) -> String {
    format!(
        "{method}{}",
        with_blocks(include_str!("../../policy/decide.lua"))
    )
}

/// Puts the blocks where a file asks for them.
fn with_blocks(file: &str) -> String {
    let find = choice(|(_, find, _)| find.concat());
    let settle = choice(|(.., settle)| (*settle).to_owned());
    file.replace("--> find\n", &find)
        .replace("--> settle\n", &settle)
        .replace("--> write\n", include_str!("../../policy/write.lua"))
}

/// One block of the five, by the policy's algorithm.
fn choice(block: impl Fn(&(u8, &[&str], &str)) -> String) -> String {
    let mut text = String::new();
    for (index, entry) in BLOCKS.iter().enumerate() {
        let word = if index == 0 { "if" } else { "elseif" };
        text += &format!("{word} algorithm == {} then\n{}", entry.0, block(entry));
    }
    text + "end\n"
}
