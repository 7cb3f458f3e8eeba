//! The driver's errors in our words: what is known of the effect.

use std::io;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::core::{StoreError, StoreErrorKind};

/// What an error of the driver means to a call.
pub(super) enum Meaning {
    /// The server does not know the script: nothing was done.
    NoScript,
    /// Another node of the cluster has the keys, or will have them in a moment: nothing was done.
    Elsewhere,
    /// The server answered, and refused.
    Refused(StoreErrorKind),
    /// The server cannot serve at this moment, or the answer is lost.
    Away,
}

pub(super) fn meaning(error: &RedisError) -> Meaning {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::NoScript) => Meaning::NoScript,
        _ if is_read_only(error) => Meaning::Away,
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown,
        ) => Meaning::Away,
        ErrorKind::Server(
            ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::TryAgain,
        ) => Meaning::Elsewhere,
        // Somebody's script holds up the server.
        ErrorKind::Extension if error.code() == Some("BUSY") => Meaning::Away,
        _ if lacks_replicas(error) => Meaning::Away,
        ErrorKind::Server(_) | ErrorKind::Extension if is_out_of_memory(error) => {
            Meaning::Refused(StoreErrorKind::Full)
        }
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType => {
            Meaning::Refused(StoreErrorKind::Failed)
        }
        _ => Meaning::Away,
    }
}

/// Whether the next command needs another connection: this one is broken, or it leads to a server that
/// may not write (a replica, after a failover), while the name may lead to its successor by now.
pub(super) fn ends_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || error.kind() == ErrorKind::Server(ServerErrorKind::MasterDown)
        || is_read_only(error)
}

/// Too few replicas are left for the server to take a write.
fn lacks_replicas(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Extension && error.code() == Some("NOREPLICAS")
}

/// The server takes no write now: too few replicas are left, or it cannot save.
pub(super) fn takes_no_write(error: &RedisError) -> bool {
    lacks_replicas(error) || error.code() == Some("MISCONF")
}

/// The server does not run this command, for this user or at all.
pub(super) fn is_never_run(error: &RedisError) -> bool {
    let is_unknown = |detail: &str| detail.starts_with("unknown command");
    error.code() == Some("NOPERM")
        || error.code() == Some("ERR") && error.detail().is_some_and(is_unknown)
}

/// A replica takes no write. Before Redis 7 a script comes that far, and the refusal is inside its error.
fn is_read_only(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
        || error
            .detail()
            .is_some_and(|detail| detail.contains("READONLY You can't write"))
}

/// There is no server to be had that could be asked.
pub(super) fn away(why: &'static str) -> RedisError {
    io::Error::new(io::ErrorKind::NotConnected, why).into()
}

/// Whatever was said before a connection was ready is no answer to a call.
pub(super) fn unreached(error: RedisError) -> RedisError {
    match meaning(&error) {
        Meaning::Away => error,
        Meaning::NoScript | Meaning::Elsewhere | Meaning::Refused(_) => {
            io::Error::new(io::ErrorKind::NotConnected, error).into()
        }
    }
}

/// At `maxmemory` a write is refused with OOM, also from inside a script.
fn is_out_of_memory(error: &RedisError) -> bool {
    error.code() == Some("OOM")
        || error
            .detail()
            .is_some_and(|detail| detail.contains("OOM command not allowed"))
}

/// An error whose driver text is kept for the log, never for a client.
pub(super) fn with_source(kind: StoreErrorKind, error: RedisError) -> StoreError {
    StoreError::with_source(kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        value.extract_error().unwrap_err()
    }

    fn refused_as(line: &str) -> Option<StoreErrorKind> {
        match meaning(&said(line)) {
            Meaning::Refused(kind) => Some(kind),
            Meaning::NoScript | Meaning::Away | Meaning::Elsewhere => None,
        }
    }

    #[test]
    fn a_full_server_is_full_also_where_a_script_met_it() {
        let lines = [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "OOM command not allowed when used memory > 'maxmemory'. script: abc, on @user_script:1.",
            "ERR Error running script (call to f_abc): @user_script:1: @user_script: 1: \
             -OOM command not allowed when used memory > 'maxmemory'.",
        ];
        for line in lines {
            assert_eq!(refused_as(line), Some(StoreErrorKind::Full), "{line}");
        }
    }

    #[test]
    fn what_the_server_will_not_do_is_failed() {
        let lines = [
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "ERR unknown command 'FROB'",
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "NOAUTH Authentication required.",
            "CROSSSLOT Keys in request don't hash to the same slot",
            "MISCONF Redis is configured to save RDB snapshots",
        ];
        for line in lines {
            assert_eq!(refused_as(line), Some(StoreErrorKind::Failed), "{line}");
        }
    }

    #[test]
    fn a_command_that_is_not_run_is_told_from_what_was_asked() {
        let no_write = [
            "MISCONF Redis is configured to save RDB snapshots",
            "NOREPLICAS Not enough good replicas to write.",
        ];
        let never = [
            "NOPERM this user has no permissions to run the 'getex' command",
            "ERR unknown command 'GETEX', with args beginning with: 'a'",
        ];
        let others = [
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "READONLY You can't write against a read only replica.",
            "ERR syntax error",
            "MOVED 3999 127.0.0.1:6381",
            "LOADING Redis is loading the dataset in memory",
        ];
        for line in no_write.iter().chain(&never).chain(&others) {
            let error = said(line);
            assert_eq!(takes_no_write(&error), no_write.contains(line), "{line}");
            assert_eq!(is_never_run(&error), never.contains(line), "{line}");
        }
    }

    #[test]
    fn a_server_that_cannot_serve_now_is_away_and_one_that_may_not_write_is_left() {
        let lines = [
            ("LOADING Redis is loading the dataset in memory", false),
            ("CLUSTERDOWN The cluster is down", false),
            ("BUSY Redis is busy running a script.", false),
            ("NOREPLICAS Not enough good replicas to write.", false),
            ("MASTERDOWN Link with MASTER is down", true),
            (
                "READONLY You can't write against a read only replica.",
                true,
            ),
            (
                "ERR Error running script (call to f_abc): @user_script:1: @user_script: 1: \
                 -READONLY You can't write against a read only replica.",
                true,
            ),
        ];
        for (line, is_left) in lines {
            let error = said(line);
            assert!(matches!(meaning(&error), Meaning::Away), "{line}");
            assert_eq!(ends_connection(&error), is_left, "{line}");
        }
        let lost = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(matches!(meaning(&lost), Meaning::Away) && ends_connection(&lost));
    }

    #[test]
    fn what_goes_wrong_before_a_connection_is_ready_is_no_answer() {
        let answers = ["ERR DB index is out of range", "NOPERM no"];
        let early = answers.map(|line| unreached(said(line)));
        for error in early.into_iter().chain([away("not the primary")]) {
            assert!(matches!(meaning(&error), Meaning::Away), "{error}");
            assert!(ends_connection(&error), "{error}");
        }
    }

    #[test]
    fn a_forgotten_script_is_told_apart() {
        let error = said("NOSCRIPT No matching script. Please use EVAL.");
        assert!(matches!(meaning(&error), Meaning::NoScript));
        assert!(!ends_connection(&error));
    }

    #[test]
    fn a_node_that_has_not_the_keys_did_nothing_and_stays() {
        for line in [
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "TRYAGAIN Multiple keys request during rehashing of slot",
        ] {
            let error = said(line);
            assert!(matches!(meaning(&error), Meaning::Elsewhere), "{line}");
            assert!(!ends_connection(&error), "{line}");
        }
    }
}
