//! The scripts: one file a method, behind what all algorithms share and the algorithms that it may meet.

use super::super::super::quota::Algorithm;
use super::super::Charge;
use crate::backend::redis::Script;

/// A method's script behind what all algorithms share, and the algorithms that it may meet.
macro_rules! script {
    ($method:literal, $($algorithm:literal),+) => {
        Script::new(concat!(
            include_str!("../algorithms.lua"),
            $(include_str!(concat!("../../policy/", $algorithm, ".lua")),)+
            include_str!(concat!("../", $method, ".lua"))
        ))
    };
    ($method:literal) => {
        script!($method, "log", "buckets", "gcra", "fixed")
    };
}

pub(super) static CHECK_AND_RECORD: Charging = Charging {
    log: script!("check_and_record", "log"),
    buckets: script!("check_and_record", "buckets"),
    gcra: script!("check_and_record", "gcra"),
    fixed: script!("check_and_record", "fixed"),
    any: script!("check_and_record"),
};
pub(super) static CHECK: Script = script!("check");
pub(super) static RECORD: Script = script!("record");
pub(super) static REFUND: Script = script!("refund");
pub(super) static RESET: Script = Script::new(include_str!("../reset.lua"));
pub(super) static BLOCK: Script = Script::new(include_str!("../block.lua"));

/// What is asked for every request, by the algorithm of its policies: a call makes everything in its script anew, and
/// what it makes for three others takes about a fifth of its time.
pub(super) struct Charging {
    log: Script,
    buckets: Script,
    gcra: Script,
    fixed: Script,
    any: Script,
}

impl Charging {
    pub(super) fn of(&'static self, charges: &[Charge<'_>]) -> &'static Script {
        let mut algorithms = charges
            .iter()
            .map(|charge| charge.bucket.scope.quota().algorithm());
        let script = |algorithm| match algorithm {
            Algorithm::Log => &self.log,
            Algorithm::Buckets => &self.buckets,
            Algorithm::Gcra { .. } => &self.gcra,
            Algorithm::Fixed | Algorithm::Month => &self.fixed,
        };
        let Some(first) = algorithms.next().map(script) else {
            return &self.any;
        };
        let is_same = |other| std::ptr::eq(script(other), first);
        if algorithms.all(is_same) {
            first
        } else {
            &self.any
        }
    }
}
