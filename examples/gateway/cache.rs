//! The response cache: every setter of its layer as an option.

use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use tower_keep::response_cache::{KeyRules, ResponseCacheLayer, TRACKING};
use tower_keep::store::Store;

use crate::setting::{Given, Setting, apply, bytes, field, list, seconds};

/// The layer as far as it is set; the rules of the key are one setter of many parts.
pub struct Building {
    layer: ResponseCacheLayer,
    key: KeyRules,
}

impl Building {
    fn with(
        self,
        set: impl FnOnce(ResponseCacheLayer) -> ResponseCacheLayer,
    ) -> Result<Self, String> {
        let layer = set(self.layer);
        Ok(Self { layer, ..self })
    }

    fn by(self, rule: impl FnOnce(KeyRules) -> KeyRules) -> Result<Self, String> {
        let key = rule(self.key);
        Ok(Self { key, ..self })
    }
}

pub fn layer(store: Arc<dyn Store>, given: &[Given]) -> Result<ResponseCacheLayer, String> {
    let building = Building {
        layer: ResponseCacheLayer::new(store),
        key: KeyRules::new(),
    };
    let built = apply(&SETTINGS, given, building)?;
    Ok(built.layer.key(built.key))
}

const fn setting(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    set: fn(Building, &str) -> Result<Building, String>,
) -> Setting<Building> {
    Setting {
        name,
        value,
        help,
        set,
    }
}

pub const SETTINGS: [Setting<Building>; 24] = [
    setting(
        "--local-bytes",
        "N",
        "bound of this process's copies of a shared store, 0 for none [67108864]",
        |own, value| {
            let bytes = bytes(value)?;
            own.with(|layer| layer.local_bytes(bytes))
        },
    ),
    setting(
        "--max-body",
        "N",
        "larger bodies stream through unstored [1048576]",
        |own, value| {
            let bytes = bytes(value)?;
            own.with(|layer| layer.max_body(bytes))
        },
    ),
    setting(
        "--name",
        "NAME",
        "the name in Cache-Status [tower-keep]",
        |own, value| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if !value.starts_with(|first: char| first.is_ascii_alphabetic())
                || !value.bytes().all(plain)
            {
                return Err("wants a letter, then letters, digits, - _ .".to_owned());
            }
            // Once in the life of the program.
            let name: &'static str = Box::leak(value.into());
            own.with(|layer| layer.name(name))
        },
    ),
    setting("--hide-status", "", "send no Cache-Status", |own, _| {
        own.with(ResponseCacheLayer::hide_status)
    }),
    setting(
        "--score",
        "",
        "as --replay-set-cookie --allow-reload, for conformance suites",
        |own, _| own.with(|layer| layer.replay_set_cookie().allow_reload()),
    ),
    setting(
        "--allow-reload",
        "",
        "obey requests that demand a fresh answer",
        |own, _| own.with(ResponseCacheLayer::allow_reload),
    ),
    setting(
        "--replay-set-cookie",
        "",
        "store and replay Set-Cookie as RFC 9111 permits",
        |own, _| own.with(ResponseCacheLayer::replay_set_cookie),
    ),
    setting(
        "--no-heuristics",
        "",
        "guess no lifetime from Last-Modified",
        |own, _| own.with(ResponseCacheLayer::no_heuristics),
    ),
    setting(
        "--targeted",
        "LIST",
        "targeted fields, first wins; empty for none [CDN-Cache-Control]",
        |own, value| {
            let names = list(value).map(field).collect::<Result<Vec<_>, _>>()?;
            own.with(|layer| layer.targeted(names))
        },
    ),
    setting(
        "--ttl",
        "S",
        "freshness of answers that say nothing",
        |own, value| {
            let ttl = seconds(value)?;
            own.with(|layer| layer.ttl(ttl))
        },
    ),
    setting(
        "--ttl-for",
        "STATUS=S",
        "the same for one more status; repeatable",
        |own, value| {
            let (status, ttl) = value.split_once('=').ok_or("wants STATUS=S")?;
            let status: StatusCode = status.parse().map_err(|_| "wants STATUS=S")?;
            let ttl = seconds(ttl)?;
            own.with(|layer| layer.ttl_for(status, ttl))
        },
    ),
    setting(
        "--refresh-after",
        "S",
        "from this age on refresh behind the answer",
        |own, value| {
            let age = seconds(value)?;
            own.with(|layer| layer.refresh_after(age))
        },
    ),
    setting(
        "--stale-while-revalidate",
        "S",
        "stale answers while a refresh runs behind them",
        |own, value| {
            let window = seconds(value)?;
            own.with(|layer| layer.stale_while_revalidate(window))
        },
    ),
    setting(
        "--stale-if-error",
        "S",
        "stale answers in place of errors",
        |own, value| {
            let window = seconds(value)?;
            own.with(|layer| layer.stale_if_error(window))
        },
    ),
    setting(
        "--tag",
        "TAG",
        "a tag of every answer; repeatable",
        |own, value| {
            if !(1..=128).contains(&value.len()) || value.chars().any(char::is_control) {
                return Err("wants 1 to 128 bytes without control characters".to_owned());
            }
            let tag = value.to_owned();
            own.with(|layer| layer.tag(tag))
        },
    ),
    setting(
        "--private",
        "",
        "one copy per principal (see --principal-header)",
        |own, _| own.with(ResponseCacheLayer::private),
    ),
    setting(
        "--public",
        "",
        "answers are the same for all, whatever was sent along",
        |own, _| own.with(ResponseCacheLayer::public),
    ),
    setting(
        "--sort-query",
        "",
        "sort the query's parameters by name",
        |own, _| own.by(KeyRules::sort_query),
    ),
    setting(
        "--ignore-query",
        "LIST",
        "take these parameters out, * at the end for any rest; TRACKING for the usual ones",
        |own, value| {
            let names: Vec<&str> = list(value)
                .flat_map(|name| {
                    if name == "TRACKING" {
                        TRACKING.to_vec()
                    } else {
                        vec![name]
                    }
                })
                .collect();
            own.by(|key| key.ignore_query(names))
        },
    ),
    setting(
        "--only-query",
        "LIST",
        "take all other parameters out",
        |own, value| own.by(|key| key.only_query(list(value))),
    ),
    setting(
        "--key-header",
        "NAME",
        "a request field as part of the key; repeatable",
        |own, value| {
            let name = field(value)?;
            own.by(|key| key.header(name))
        },
    ),
    setting(
        "--key-cookie",
        "NAME",
        "a cookie as part of the key; repeatable",
        |own, value| own.by(|key| key.cookie(value)),
    ),
    setting(
        "--lease",
        "S",
        "how long others wait for one run, 0.1 to 60 [5]",
        |own, value| {
            let lease = seconds(value)?;
            own.with(|layer| layer.lease(lease))
        },
    ),
    setting(
        "--downstream",
        "VALUE",
        "Cache-Control for clients where --ttl made it storable [no-cache]",
        |own, value| {
            let value = HeaderValue::try_from(value).map_err(|_| "wants a field value")?;
            own.with(|layer| layer.downstream(value))
        },
    ),
];
