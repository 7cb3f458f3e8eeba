//! Targeted Cache-Control: fields that speak to this kind of cache alone (RFC 9213), Dictionaries of RFC 9651.

use http::header::{self, HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, Key, ListEntry, Parser};

use super::directives::{Directives, MOST_SECONDS};

/// Reads what a response says to this cache: the first of `names` that is there and valid, else Cache-Control.
pub(super) fn said(fields: &HeaderMap, names: &[HeaderName]) -> Directives {
    let targeted = names.iter().find_map(|name| read(fields, name));
    match targeted {
        // It replaces Cache-Control whole, but whether there is one for clients is another question.
        Some(said) => Directives {
            present: fields.contains_key(header::CACHE_CONTROL),
            targeted: true,
            ..said
        },
        None => Directives::of(fields.get_all(header::CACHE_CONTROL)),
    }
}

/// `None` where the field is absent, empty, no Dictionary, or says a known directive with the wrong type.
fn read(fields: &HeaderMap, name: &HeaderName) -> Option<Directives> {
    if !fields.contains_key(name) {
        return None;
    }
    let lines = fields.get_all(name).iter().map(|line| line.as_bytes());
    let lines: Vec<&[u8]> = lines.filter(|line| !line.is_empty()).collect();
    let text = lines.join(&b", "[..]);
    let members: Dictionary = Parser::new(&text).parse().ok()?;
    let mut said = Directives::default();
    for (name, member) in &members {
        take(&mut said, name, member)?;
    }
    (!members.is_empty()).then_some(said)
}

fn take(said: &mut Directives, name: &Key, member: &ListEntry) -> Option<()> {
    let flag = || match member {
        ListEntry::Item(item) => item.bare_item.as_boolean(),
        ListEntry::InnerList(_) => None,
    };
    let number = || match member {
        ListEntry::Item(item) => match &item.bare_item {
            // Negative ones are stale at once, as in Cache-Control.
            BareItem::Integer(number) => Some(u64::try_from(i64::from(*number)).unwrap_or(0)),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    };
    match name.as_str() {
        "no-store" => said.no_store = flag()?,
        "no-cache" => said.no_cache = whole(said, member)?,
        "private" => said.private = whole(said, member)?,
        "public" => said.public = flag()?,
        "must-revalidate" => said.must_revalidate = flag()?,
        "proxy-revalidate" => said.proxy_revalidate = flag()?,
        "must-understand" => said.must_understand = flag()?,
        "max-age" => said.max_age = Some(number()?.min(MOST_SECONDS)),
        "s-maxage" => said.s_maxage = Some(number()?.min(MOST_SECONDS)),
        "stale-while-revalidate" => {
            said.stale_while_revalidate = Some(number()?.min(MOST_SECONDS));
        }
        "stale-if-error" => said.stale_if_error = Some(number()?.min(MOST_SECONDS)),
        _ => {}
    }
    Some(())
}

/// A flag means the whole answer, a String names fields.
fn whole(said: &mut Directives, member: &ListEntry) -> Option<bool> {
    let ListEntry::Item(item) = member else {
        return None;
    };
    match &item.bare_item {
        BareItem::Boolean(flag) => Some(*flag),
        BareItem::String(names) => Some(said.hides_named(names.as_str().as_bytes())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const CDN: HeaderName = HeaderName::from_static("cdn-cache-control");

    fn of(lines: &[&str]) -> Directives {
        let mut fields = HeaderMap::new();
        fields.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("max-age=1, no-store"),
        );
        for line in lines {
            fields.append(CDN, line.parse().unwrap());
        }
        said(&fields, &[HeaderName::from_static("none"), CDN])
    }

    #[test]
    fn a_valid_field_replaces_cache_control_whole() {
        let said = of(&[
            "max-age=60, foo",
            "stale-while-revalidate=5;x=1, private=?0",
        ]);
        assert_eq!(
            (said.max_age, said.stale_while_revalidate),
            (Some(60), Some(5))
        );
        assert!(said.targeted && said.present && !said.no_store && !said.private);
        assert!(of(&["no-cache"]).no_cache && of(&["private, max-age=9"]).private);
        let hidden = of(&["no-cache=\"a, B\", max-age=5"]);
        assert_eq!((hidden.no_cache, hidden.hidden.len()), (false, 2));
        // Of a key that is there twice the last counts (RFC 9651 §4.2.2).
        assert_eq!(of(&["max-age=1, max-age=2"]).max_age, Some(2));
        assert_eq!(of(&["max-age=99999999999"]).max_age, Some(MOST_SECONDS));
        assert_eq!(of(&["max-age=-1"]).max_age, Some(0));
    }

    #[test]
    fn an_invalid_field_is_as_good_as_absent() {
        for invalid in [
            "",
            "max-age=60, &&&&&",
            "max-age=60,",
            "max-age=\"60\"",
            "max-age=60.0",
            "max-age",
            "max-age =60",
            "max-age= 60",
            "MaX-aGe=60",
            "max-age=(60)",
            "max-age=9999999999999999",
            "no-store=1, max-age=60",
            "no-cache=x, max-age=60",
        ] {
            let said = of(&[invalid]);
            assert!(!said.targeted && said.no_store, "{invalid:?}");
            assert_eq!(said.max_age, Some(1), "{invalid:?}");
        }
    }

    #[test]
    fn the_first_valid_one_of_the_list_decides() {
        let mut fields = HeaderMap::new();
        let (own, other) = (
            HeaderName::from_static("own"),
            HeaderName::from_static("other"),
        );
        fields.insert(own.clone(), HeaderValue::from_static("max-age=\"1\""));
        fields.insert(other.clone(), HeaderValue::from_static("max-age=2"));
        fields.insert(CDN, HeaderValue::from_static("max-age=3"));
        assert_eq!(said(&fields, &[own, other, CDN]).max_age, Some(2));
        assert_eq!(said(&fields, &[CDN]).max_age, Some(3));
        assert_eq!(said(&fields, &[]), Directives::default());
    }

    proptest! {
        #[test]
        fn anything_at_all_can_be_read(line in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut fields = HeaderMap::new();
            if let Ok(line) = HeaderValue::from_bytes(&line) {
                fields.append(CDN, line);
            }
            said(&fields, &[CDN]);
        }
    }
}
