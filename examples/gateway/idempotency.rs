//! Idempotency: a preset, then every setter of its layer as an option.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Response, StatusCode, Uri};
use tower_keep::core::StoreFailure;
use tower_keep::idempotency::{
    DerivedKey, Directive, FingerprintRule, IdempotencyLayer, IdempotencyRejection, KeyFormat,
    LeaseEnd, Methods, Preset, Scope, StatusPolicy, Twins,
};
use tower_keep::store::Store;

use crate::setting::{Given, SECRET, Setting, apply, bytes, field, list, seconds};

/// The layer as far as it is set; what statuses do is one setter of many parts.
pub struct Building {
    layer: IdempotencyLayer,
    statuses: Option<StatusPolicy>,
    /// Refusals by their code that get another status.
    refusals: Vec<(String, StatusCode)>,
}

impl Building {
    fn with(self, set: impl FnOnce(IdempotencyLayer) -> IdempotencyLayer) -> Result<Self, String> {
        let layer = set(self.layer);
        Ok(Self { layer, ..self })
    }
}

/// Reads the name of a preset.
///
/// # Errors
/// One sentence.
pub fn preset(text: &str) -> Result<Preset, String> {
    match text {
        "payments" => Ok(Preset::Payments),
        "api" => Ok(Preset::Api),
        "form" => Ok(Preset::Form),
        "webhook" => Ok(Preset::Webhook),
        _ => Err(format!(
            "--idempotency wants payments, api, form or webhook, not {text}"
        )),
    }
}

pub fn layer(
    store: Arc<dyn Store>,
    preset: Preset,
    given: &[Given],
) -> Result<IdempotencyLayer, String> {
    // The scope is what a layer is made with; everything else is set on it.
    let scope = given
        .iter()
        .rfind(|(name, _)| name == SCOPE)
        .map_or("client", |(_, scope)| scope);
    let scope = match scope {
        "client" => Scope::principal().or_client_ip(),
        "principal" => Scope::principal(),
        "global" => Scope::global(),
        other => {
            return Err(format!(
                "{SCOPE} wants client, principal or global, not {other}"
            ));
        }
    };
    let building = Building {
        layer: IdempotencyLayer::new(store, scope).preset(preset),
        statuses: None,
        refusals: Vec::new(),
    };
    let built = apply(&SETTINGS, given, building)?;
    let mut layer = built.layer;
    if let Some(statuses) = built.statuses {
        layer = layer.statuses(statuses);
    }
    if !built.refusals.is_empty() {
        layer = layer.on_rejection(move |why, response| remap(&built.refusals, why, response));
    }
    Ok(layer)
}

const SCOPE: &str = "--idempotency-scope";

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

pub const SETTINGS: [Setting<Building>; 27] = [
    setting(
        SCOPE,
        "WHOSE",
        "whose keys: client (principal, else address), principal or global [client]",
        |own, _| Ok(own),
    ),
    setting(
        "--idempotency-require-key",
        "",
        "a request without a key is 400",
        |own, _| own.with(IdempotencyLayer::require_key),
    ),
    setting(
        "--idempotency-header",
        "NAME",
        "the field with the key [Idempotency-Key]",
        |own, value| {
            let name = field(value)?;
            own.with(|layer| layer.header(name))
        },
    ),
    setting(
        "--idempotency-key-format",
        "FORM[:MIN]",
        "lenient, structured or uuid; with the least length [lenient]",
        |own, value| {
            let format = key_format(value)
                .ok_or("wants lenient, structured or uuid, perhaps with :MIN from 1 to 255")?;
            own.with(|layer| layer.key_format(format))
        },
    ),
    setting(
        "--idempotency-derive",
        "NAME:FIELDS",
        "the key from fields of the body: text=F, email=F or instant=F",
        |own, value| {
            let key = derived(value).ok_or("wants NAME:text=F,email=F,instant=F")?;
            own.with(|layer| layer.derive(key))
        },
    ),
    setting(
        "--idempotency-namespace",
        "NAME",
        "keeps keys of two services in one store apart",
        |own, value| own.with(|layer| layer.namespace(value)),
    ),
    setting(
        "--idempotency-per-endpoint",
        "",
        "one key on two endpoints is two keys",
        |own, _| own.with(IdempotencyLayer::per_endpoint),
    ),
    setting(
        "--idempotency-secret",
        SECRET,
        "64 hex digits: the secret of the kept hashes",
        |own, value| {
            let secret = secret(value).ok_or("wants 64 hex digits")?;
            own.with(|layer| layer.secret(secret))
        },
    ),
    setting(
        "--idempotency-methods",
        "WHICH",
        "post-patch, or unsafe for all that may change something [post-patch]",
        |own, value| {
            let methods = match value {
                "post-patch" => Methods::PostPatch,
                "unsafe" => Methods::Unsafe,
                _ => return Err("wants post-patch or unsafe".to_owned()),
            };
            own.with(|layer| layer.methods(methods))
        },
    ),
    setting(
        "--idempotency-fingerprint",
        "RULE",
        "what makes a payload the same: bytes, json or route, then ,header=F ,include=/p ,exclude=/p ,digests",
        |own, value| {
            let rule = fingerprint(value).ok_or("wants bytes, json or route, then ,header=F ,include=/p ,exclude=/p (pointers with json) ,digests")?;
            own.with(|layer| layer.fingerprint(rule))
        },
    ),
    setting(
        "--idempotency-ttl",
        "S",
        "how long answers are kept",
        |own, value| {
            let ttl = seconds(value)?;
            own.with(|layer| layer.ttl(ttl))
        },
    ),
    setting(
        "--idempotency-lease",
        "S",
        "how long a claim holds without a sign of life, from 0.03 [30]",
        |own, value| {
            let lease = seconds(value)?;
            if lease < Duration::from_millis(30) {
                return Err("wants 0.03 seconds at least".to_owned());
            }
            own.with(|layer| layer.lease(lease))
        },
    ),
    setting(
        "--idempotency-run-limit",
        "S",
        "how long a run may take [300]",
        |own, value| {
            let limit = seconds(value)?;
            own.with(|layer| layer.run_limit(limit))
        },
    ),
    setting(
        "--idempotency-at-lease-end",
        "WHAT",
        "reexecute, or indeterminate until an operator decides",
        |own, value| {
            let end = match value {
                "reexecute" => LeaseEnd::Reexecute,
                "indeterminate" => LeaseEnd::Indeterminate,
                _ => return Err("wants reexecute or indeterminate".to_owned()),
            };
            own.with(|layer| layer.at_lease_end(end))
        },
    ),
    setting(
        "--idempotency-twins",
        "WHAT",
        "a second request while the first runs: reject, or attach=S to wait",
        |own, value| {
            let twins = match value.split_once('=') {
                None if value == "reject" => Twins::Reject,
                Some(("attach", wait)) => Twins::Attach(seconds(wait)?),
                _ => return Err("wants reject or attach=S".to_owned()),
            };
            own.with(|layer| layer.twins(twins))
        },
    ),
    setting(
        "--idempotency-statuses",
        "POLICY",
        "default, ietf, stripe, iceberg or success-only",
        |own, value| {
            let statuses = match value {
                "default" => StatusPolicy::default(),
                "ietf" => StatusPolicy::ietf(),
                "stripe" => StatusPolicy::stripe(),
                "iceberg" => StatusPolicy::iceberg(),
                "success-only" => StatusPolicy::success_only(),
                _ => return Err("wants default, ietf, stripe, iceberg or success-only".to_owned()),
            };
            Ok(Building {
                statuses: Some(statuses),
                ..own
            })
        },
    ),
    setting(
        "--idempotency-on",
        "STATUS=WHAT",
        "one status (after --idempotency-statuses): store, store:S, no-store, release or unknown; repeatable",
        |own, value| {
            let (status, directive) =
                on(value).ok_or("wants STATUS=store, store:S, no-store, release or unknown")?;
            let statuses = own
                .statuses
                .clone()
                .unwrap_or_default()
                .on(status, directive);
            Ok(Building {
                statuses: Some(statuses),
                ..own
            })
        },
    ),
    setting(
        "--idempotency-max-request-body",
        "N",
        "larger requests are refused [2097152]",
        |own, value| {
            let bytes = bytes(value)?;
            own.with(|layer| layer.max_request_body(bytes))
        },
    ),
    setting(
        "--idempotency-max-response-body",
        "N",
        "larger answers are not kept [2097152]",
        |own, value| {
            let bytes = bytes(value)?;
            own.with(|layer| layer.max_response_body(bytes))
        },
    ),
    setting(
        "--idempotency-tee-up-to",
        "N",
        "larger answers up to this size are copied while they go out [0]",
        |own, value| {
            let bytes = bytes(value)?;
            own.with(|layer| layer.tee_up_to(bytes))
        },
    ),
    setting(
        "--idempotency-replay-only",
        "LIST",
        "the only fields of an answer that are kept",
        |own, value| {
            let names = list(value).map(field).collect::<Result<Vec<_>, _>>()?;
            own.with(|layer| layer.replay_only(names.iter().map(HeaderName::as_str)))
        },
    ),
    setting(
        "--idempotency-sanitize",
        "LIST",
        "take these fields out of answers before they are kept",
        |own, value| {
            let names = list(value).map(field).collect::<Result<Vec<_>, _>>()?;
            own.with(|layer| {
                layer.sanitize(move |answer| {
                    for name in &names {
                        answer.fields.remove(name);
                    }
                })
            })
        },
    ),
    setting(
        "--idempotency-replay-header",
        "NAME",
        "the field that marks a replay [Idempotency-Replayed]",
        |own, value| {
            let name = field(value)?;
            own.with(|layer| layer.replay_header(name))
        },
    ),
    setting(
        "--idempotency-report-status",
        "",
        "say in fields what was done and until when it is kept",
        |own, _| own.with(IdempotencyLayer::report_status),
    ),
    setting(
        "--idempotency-on-store-failure",
        "MODE",
        "closed, or open to run without protection [closed]",
        |own, value| {
            let mode = match value {
                "closed" => StoreFailure::Closed,
                "open" => StoreFailure::Open,
                _ => return Err("wants closed or open".to_owned()),
            };
            own.with(|layer| layer.on_store_failure(mode))
        },
    ),
    setting(
        "--idempotency-documentation",
        "URL",
        "the page that refusals link to",
        |own, value| {
            let page: Uri = value.parse().map_err(|_| "wants a URL")?;
            own.with(|layer| layer.documentation(page))
        },
    ),
    setting(
        "--idempotency-on-rejection",
        "CODE=STATUS",
        "another status for refusals of this code, such as IDEMPOTENCY_IN_PROGRESS=423; repeatable",
        |mut own, value| {
            let refusal = refusal(value).ok_or("wants CODE=STATUS, the status from 400 to 599")?;
            own.refusals.push(refusal);
            Ok(own)
        },
    ),
];

fn refusal(text: &str) -> Option<(String, StatusCode)> {
    let (code, status) = text.split_once('=')?;
    let is_code = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
    let known = !code.is_empty() && code.bytes().all(is_code);
    let status = StatusCode::from_bytes(status.as_bytes()).ok()?;
    let refuses = status.is_client_error() || status.is_server_error();
    (known && refuses).then(|| (code.to_owned(), status))
}

/// Gives a refusal its other status, in the head and in the document; the last one said counts.
fn remap(
    refusals: &[(String, StatusCode)],
    why: &IdempotencyRejection,
    response: &mut Response<Bytes>,
) {
    let Some((_, status)) = refusals.iter().rfind(|(code, _)| code == why.code()) else {
        return;
    };
    *response.status_mut() = *status;
    let document = serde_json::from_slice::<serde_json::Value>(response.body());
    if let Ok(mut document) = document {
        document["status"] = status.as_u16().into();
        *response.body_mut() = document.to_string().into();
    }
}

fn key_format(text: &str) -> Option<KeyFormat> {
    let (form, least) = text
        .split_once(':')
        .map_or((text, None), |(form, least)| (form, Some(least)));
    let format = match form {
        "lenient" => KeyFormat::lenient(),
        "structured" => KeyFormat::structured(),
        "uuid" => KeyFormat::uuid(),
        _ => return None,
    };
    match least {
        None => Some(format),
        Some(least) => {
            let least = least
                .parse()
                .ok()
                .filter(|least| (1..=255).contains(least))?;
            Some(format.min_len(least))
        }
    }
}

fn derived(text: &str) -> Option<DerivedKey> {
    let (name, fields) = text.split_once(':').filter(|(name, _)| !name.is_empty())?;
    let mut fields = list(fields).peekable();
    fields.peek()?;
    fields.try_fold(DerivedKey::fields(name), |key, field| {
        match field.split_once('=')? {
            (_, "") => None,
            ("text", field) => Some(key.text(field)),
            ("email", field) => Some(key.email(field)),
            ("instant", field) => Some(key.instant(field)),
            _ => None,
        }
    })
}

fn fingerprint(text: &str) -> Option<FingerprintRule> {
    let mut parts = list(text);
    let kind = parts.next()?;
    let rule = match kind {
        "bytes" => FingerprintRule::bytes(),
        "json" => FingerprintRule::json(),
        "route" => FingerprintRule::route(),
        _ => return None,
    };
    let points = |pointer: &str| kind == "json" && (pointer.is_empty() || pointer.starts_with('/'));
    parts.try_fold(rule, |rule, part| match part.split_once('=') {
        None if part == "digests" => Some(rule.digest_uploads()),
        None => None,
        Some(both) => chosen(rule, both, points),
    })
}

fn chosen(
    rule: FingerprintRule,
    both: (&str, &str),
    points: impl Fn(&str) -> bool,
) -> Option<FingerprintRule> {
    match both {
        ("header", name) => Some(rule.header(field(name).ok()?)),
        ("include", pointer) if points(pointer) => Some(rule.include(pointer)),
        ("exclude", pointer) if points(pointer) => Some(rule.exclude(pointer)),
        _ => None,
    }
}

fn on(text: &str) -> Option<(u16, Directive)> {
    let (status, what) = text.split_once('=')?;
    let status = status
        .parse()
        .ok()
        .filter(|status| (100..=999).contains(status))?;
    let directive = match what.split_once(':') {
        Some(("store", kept)) => Directive::StoreFor(seconds(kept).ok()?),
        None => match what {
            "store" => Directive::Store,
            "no-store" => Directive::NoStore,
            "release" => Directive::Release,
            "unknown" => Directive::Unknown,
            _ => return None,
        },
        Some(_) => return None,
    };
    Some((status, directive))
}

fn secret(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut secret = [0; 32];
    for (at, byte) in secret.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(secret)
}
