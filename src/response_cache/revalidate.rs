//! Conditions, both ways: what a client already has, and what the inner service says is still right.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::date;
use super::directives::members;
use super::entry::{Flags, Head};
use super::freshness;
use crate::core::fields;

/// Fields that a 304 leaves out, and that one from inside does not change.
const OF_THE_BODY: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_RANGE,
];

/// Says whether the client's copy is still right (RFC 9110 §13.2.2), so that a 304 will do. `now` settles two-digit years.
pub(super) fn is_not_modified(request: &HeaderMap, stored: &HeaderMap, now: i64) -> bool {
    if request.contains_key(header::IF_NONE_MATCH) {
        let stored = stored.get(header::ETAG).map(opaque);
        return request.get_all(header::IF_NONE_MATCH).iter().any(|line| {
            members(line.as_bytes())
                .any(|member| member == b"*" || stored.is_some_and(|stored| weak(member) == stored))
        });
    }
    let read = |value: &HeaderValue| date::parse(value.as_bytes(), now);
    let Some(since) = request.get(header::IF_MODIFIED_SINCE).and_then(read) else {
        return false;
    };
    let changed = stored
        .get(header::LAST_MODIFIED)
        .or_else(|| stored.get(header::DATE));
    changed
        .and_then(read)
        .is_some_and(|changed| changed <= since)
}

fn opaque(tag: &HeaderValue) -> &[u8] {
    weak(tag.as_bytes())
}

/// The tag without its weakness: weak comparison (RFC 9110 §8.8.3.2).
fn weak(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Returns the tag if it is a strong one.
pub(super) fn strong_etag(tag: &HeaderValue) -> Option<&[u8]> {
    tag.as_bytes().starts_with(b"\"").then(|| tag.as_bytes())
}

/// Takes off what describes the body, which a 304 does not have.
pub(super) fn without_body(fields: &mut HeaderMap) {
    for name in &OF_THE_BODY {
        fields.remove(name);
    }
}

/// Takes the client's conditions off, so that the whole answer comes and can be shared.
pub(super) fn strip_conditions(request: &mut HeaderMap) {
    for name in [
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::RANGE,
        header::IF_RANGE,
    ] {
        request.remove(name);
    }
}

/// Puts the stored validators in; says whether there was one. A tag of our own is never sent inwards.
pub(super) fn put_conditions(request: &mut HeaderMap, head: &Head) -> bool {
    let tag = head
        .fields
        .get(header::ETAG)
        .filter(|_| !head.flags.has(Flags::OWN_ETAG));
    let changed = head.fields.get(header::LAST_MODIFIED);
    if let Some(tag) = tag {
        request.insert(header::IF_NONE_MATCH, tag.clone());
    }
    if let Some(changed) = changed {
        request.insert(header::IF_MODIFIED_SINCE, changed.clone());
    }
    tag.is_some() || changed.is_some()
}

/// Says whether a 304 confirms another answer than the stored one (RFC 9111 §4.3.4): by its tag, where that can tell, else
/// by its date. One that names neither can only mean what it was asked for.
pub(super) fn names_another(confirmed: &HeaderMap, head: &Head) -> bool {
    let old = head.fields.get(header::ETAG);
    match (old, confirmed.get(header::ETAG)) {
        (old, Some(new)) if strong_etag(new).is_some() => {
            old.and_then(strong_etag) != strong_etag(new)
        }
        // A weak one names what is stored as well as another version.
        (Some(old), Some(new)) => opaque(old) != opaque(new),
        _ => has_another_date(confirmed, head),
    }
}

fn has_another_date(confirmed: &HeaderMap, head: &Head) -> bool {
    let Some(new) = confirmed.get(header::LAST_MODIFIED) else {
        return false;
    };
    let Some(old) = head.fields.get(header::LAST_MODIFIED) else {
        return true;
    };
    // Settles the century of a two-digit year.
    let now = freshness::seconds_of(head.received);
    let read = |value: &HeaderValue| date::parse(value.as_bytes(), now);
    old != new && (read(old).is_none() || read(old) != read(new))
}

/// Stored fields, replaced by those of the 304 that confirmed them (RFC 9111 §3.2).
pub(super) fn merged(head: &Head, confirmed: &HeaderMap) -> HeaderMap {
    let own = |name: &HeaderName| {
        (head.flags.has(Flags::OWN_CACHE_CONTROL) && *name == header::CACHE_CONTROL)
            || (head.flags.has(Flags::OWN_ETAG) && *name == header::ETAG)
            // Without a Date of its own the 304 was made when it came, not when the stored answer was.
            || *name == header::DATE
    };
    // A digest is of the body that is kept, not of the 304's, which has none.
    let digest = |name: &HeaderName| matches!(name.as_str(), "content-digest" | "content-md5");
    let taken = |name: &HeaderName| {
        let of_the_body = OF_THE_BODY.contains(name)
            && !(*name == header::CONTENT_TYPE && is_same_kind(&head.fields, confirmed));
        !of_the_body && !digest(name) && is_storable(name, confirmed)
    };
    let mut fields = HeaderMap::new();
    for (name, value) in head.stored_fields() {
        let replaced = taken(name) && confirmed.contains_key(name);
        if !own(name) && !replaced {
            fields.append(name, value.clone());
        }
    }
    for (name, value) in confirmed {
        if taken(name) {
            fields.append(name, value.clone());
        }
    }
    fields
}

/// The same media type, perhaps with other parameters. Another one is a framework's default for an answer without
/// a body rather than news of the stored one.
fn is_same_kind(stored: &HeaderMap, confirmed: &HeaderMap) -> bool {
    let kind = |fields: &HeaderMap| {
        let value = fields.get(header::CONTENT_TYPE)?.as_bytes();
        let end = value.iter().position(|byte| *byte == b';');
        Some(
            value[..end.unwrap_or(value.len())]
                .trim_ascii()
                .to_ascii_lowercase(),
        )
    };
    kind(stored).is_some_and(|stored| kind(confirmed) == Some(stored))
}

/// Says whether a field belongs to the answer, not to one exchange of it.
pub(super) fn is_storable(name: &HeaderName, all: &HeaderMap) -> bool {
    let text = name.as_str();
    *name == header::TRAILER
        || !(fields::is_hop_by_hop(name, all)
            || fields::is_rate_limit(name)
            || *name == header::AGE
            || *name == fields::CACHE_STATUS
            || matches!(text, "proxy-authentication-info" | "authentication-info")
            || text.starts_with("idempotency-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
        super::is_not_modified(request, stored, 784_111_777)
    }

    fn map(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn if_none_match_compares_weakly_lists_and_stars_and_takes_precedence() {
        let stored = map(&[
            ("etag", "W/\"a\""),
            ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ]);
        let holds =
            |value: &'static str| is_not_modified(&map(&[("if-none-match", value)]), &stored);
        assert!(holds("\"a\"") && holds("W/\"a\"") && holds("\"x\", \"a\"") && holds("*"));
        assert!(!holds("\"b\"") && !holds("a"));
        let both = map(&[
            ("if-none-match", "\"b\""),
            ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ]);
        assert!(!is_not_modified(&both, &stored));
        assert!(!is_not_modified(
            &map(&[("if-none-match", "\"a\"")]),
            &HeaderMap::new()
        ));
    }

    #[test]
    fn if_modified_since_reads_every_date_form_and_falls_back_on_date() {
        let stored = map(&[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        let holds =
            |since: &'static str| is_not_modified(&map(&[("if-modified-since", since)]), &stored);
        assert!(holds("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert!(holds("Sunday, 06-Nov-94 08:49:38 GMT"));
        assert!(holds("Sun Nov  6 08:49:37 1994"));
        assert!(!holds("Sun, 06 Nov 1994 08:49:36 GMT") && !holds("yesterday"));
        let dated = map(&[("date", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        assert!(is_not_modified(
            &map(&[("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")]),
            &dated
        ));
    }

    #[test]
    fn a_304_replaces_fields_but_not_those_of_the_body_or_of_one_exchange() {
        let head = Head {
            fields: map(&[
                ("etag", "\"1\""),
                ("content-type", "a/b"),
                ("x-old", "1"),
                ("x-old", "2"),
                ("x-kept", "k"),
                ("age", "0"),
            ])
            .into(),
            ..Head::default()
        };
        let fields = merged(
            &head,
            &map(&[
                ("x-old", "3"),
                ("content-type", "c/d"),
                ("content-md5", "x"),
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("ratelimit", "r"),
            ]),
        );
        assert_eq!(
            fields,
            map(&[
                ("etag", "\"1\""),
                ("content-type", "a/b"),
                ("x-kept", "k"),
                ("x-old", "3")
            ])
        );
    }

    #[test]
    fn a_304_changes_the_parameters_of_a_media_type_but_not_the_type() {
        let head = Head {
            fields: map(&[("content-type", "text/plain")]).into(),
            ..Head::default()
        };
        let of = |kind| merged(&head, &map(&[("content-type", kind)]))["content-type"].clone();
        assert_eq!(of("Text/Plain;charset=utf-8"), "Text/Plain;charset=utf-8");
        assert_eq!(of("text/html"), "text/plain");
    }

    #[test]
    fn a_304_with_another_tag_confirms_something_else() {
        let head = Head {
            fields: map(&[("etag", "\"1\"")]).into(),
            ..Head::default()
        };
        assert!(names_another(&map(&[("etag", "\"2\"")]), &head));
        assert!(!names_another(&map(&[("etag", "\"1\"")]), &head));
        assert!(names_another(&map(&[("etag", "W/\"2\"")]), &head));
        assert!(!names_another(&map(&[("etag", "W/\"1\"")]), &head));
        assert!(!names_another(&HeaderMap::new(), &head));
    }
}
