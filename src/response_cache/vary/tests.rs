//! Selection of variants, by example and at random.

use std::collections::BTreeSet;

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

fn map(list: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(*name, HeaderValue::from_static(value));
    }
    map
}

fn names(
    response: &[(&'static str, &'static str)],
    request: &[(&'static str, &'static str)],
) -> Option<String> {
    names_of(&map(response), &map(request), false).map(|names| names.as_text().to_owned())
}

#[test]
fn names_are_a_sorted_set_over_all_lines() {
    assert_eq!(names(&[], &[]).as_deref(), Some(""));
    assert_eq!(
        names(&[("vary", "Origin, accept"), ("vary", "ACCEPT,")], &[]).as_deref(),
        Some("accept,origin")
    );
}

#[test]
fn stars_bad_names_and_too_many_are_not_storable() {
    for vary in ["*", ", *", "accept, *", "a b", "a,b,c,d,e,f,g,h,i"] {
        assert_eq!(names(&[("vary", vary)], &[]), None, "{vary}");
    }
    assert_eq!(names(&[("vary", "accept"), ("vary", "*")], &[]), None);
}

#[test]
fn an_encoding_and_a_repeated_origin_are_implied() {
    assert_eq!(
        names(&[("content-encoding", "gzip")], &[]).as_deref(),
        Some("accept-encoding")
    );
    let allowed = [("access-control-allow-origin", "https://a")];
    assert_eq!(
        names(&allowed, &[("origin", "https://a")]).as_deref(),
        Some("origin")
    );
    assert_eq!(
        names(&allowed, &[("origin", "HTTPS://A")]).as_deref(),
        Some("origin")
    );
    assert_eq!(
        names(&allowed, &[("origin", "https://b")]).as_deref(),
        Some("")
    );
    assert_eq!(
        names(
            &[("access-control-allow-origin", "*")],
            &[("origin", "https://b")]
        )
        .as_deref(),
        Some("")
    );
}

#[test]
fn on_private_routes_the_principal_covers_credentials() {
    let vary = map(&[("vary", "cookie, authorization, accept")]);
    assert_eq!(
        names_of(&vary, &HeaderMap::new(), true).unwrap().as_text(),
        "accept"
    );
}

#[test]
fn values_are_compared_in_one_form() {
    let of = |name: &'static str, value: &[&'static str]| {
        let list: Vec<_> = value.iter().map(|value| (name, *value)).collect();
        selection(&Names::from_text(name), &map(&list))
    };
    let same = |name, a: &[&'static str], b: &[&'static str]| {
        assert_eq!(of(name, a), of(name, b), "{a:?} {b:?}")
    };
    let other = |name, a: &[&'static str], b: &[&'static str]| {
        assert_ne!(of(name, a), of(name, b), "{a:?} {b:?}")
    };
    same("x-a", &["1, 2"], &["1,2"]);
    same("x-a", &["1", "2"], &["1 ,\t2"]);
    other("x-a", &["1, 2"], &["2, 1"]);
    other("x-a", &["\"1, 2\""], &["\"1,2\""]);
    other("x-a", &[], &[""]);
    other("x-a", &["A"], &["a"]);
    same(
        "accept-language",
        &["de, en;q=0.5"],
        &["EN; q=0.50 ,DE;q=1"],
    );
    other("accept-language", &["de, en;q=0.5"], &["de;q=0.5, en"]);
    same(
        "accept-encoding",
        &["gzip;q=1.000, br;q=0"],
        &["br;q=0.0,GZIP"],
    );
    other("accept-encoding", &["gzip"], &["gzip;q=0"]);
    // A comma belongs to a cookie's value; lines are pairs of their own.
    other("cookie", &["a=1", "b=2"], &["a=1, b=2"]);
    other("cookie", &["a=1, b=2"], &["a=1,b=2"]);
    same("cookie", &["a=1; b=2"], &[" a=1; b=2"]);
}

#[test]
fn a_language_is_liked_best_only_if_no_other_is_liked_as_much() {
    let names = Names::from_text("accept-language,x-a");
    let liked = |value: &'static str| {
        let selection = selection(&names, &map(&[("accept-language", value), ("x-a", "1")]));
        liked_language(&names, &selection).map(<[u8]>::to_vec)
    };
    for (value, language) in [
        ("de", Some("de")),
        ("fr;q=0.5, DE;q=1.0", Some("de")),
        ("en-GB;q=0.2, *;q=0.1", Some("en-gb")),
        ("en, de", None),
        ("*", None),
        ("de;q=0", None),
        ("", None),
        ("de;x=1", None),
        ("de;q=0.5, en;q=0.5", None),
    ] {
        let language = language.map(|language| language.as_bytes().to_vec());
        assert_eq!(liked(value), language, "{value}");
    }
    let absent = selection(&names, &HeaderMap::new());
    assert_eq!(liked_language(&names, &absent), None);
    assert_eq!(liked_language(&Names::from_text("x-a"), &absent), None);
}

#[test]
fn two_requests_that_differ_in_languages_only_are_one_in_a_language() {
    let names = Names::from_text("accept-language,x-a");
    let of = |list: &[(&'static str, &'static str)], language: &str| {
        let selection = selection(&names, &map(list));
        in_language(&names, &selection, language.as_bytes())
    };
    let one = of(&[("accept-language", "en, de"), ("x-a", "1")], "de");
    assert!(one.is_some());
    assert_eq!(one, of(&[("accept-language", "de"), ("x-a", "1")], "de"));
    assert_eq!(one, of(&[("x-a", "1")], "de"));
    assert_ne!(one, of(&[("accept-language", "de"), ("x-a", "2")], "de"));
    assert_ne!(one, of(&[("accept-language", "de")], "de"));
    assert_ne!(one, of(&[("accept-language", "de"), ("x-a", "1")], "fr"));
    let other = Names::from_text("x-a");
    assert_eq!(
        in_language(&other, &selection(&other, &HeaderMap::new()), b"de"),
        None
    );
}

#[test]
fn a_response_is_in_one_language_or_none() {
    assert_eq!(
        language_of(&map(&[("content-language", " De-AT ")])).unwrap(),
        b"de-at"
    );
    assert_eq!(language_of(&map(&[("content-language", "de, en")])), None);
    let two = map(&[("content-language", "de"), ("content-language", "en")]);
    assert_eq!(language_of(&two), None);
    assert_eq!(language_of(&map(&[("content-language", "")])), None);
    assert_eq!(language_of(&HeaderMap::new()), None);
}

#[test]
fn no_two_selections_look_alike() {
    let names = Names::from_text("x-a,x-b");
    let of = |list: &[(&'static str, &'static str)]| selection(&names, &map(list));
    assert_ne!(
        of(&[("x-a", "12"), ("x-b", "3")]),
        of(&[("x-a", "1"), ("x-b", "23")])
    );
    assert_ne!(of(&[("x-a", "1")]), of(&[("x-b", "1")]));
}

proptest! {
    /// The oracle is a set of what lies between the commas of all lines.
    #[test]
    fn names_are_what_lies_between_the_commas(lines in prop::collection::vec("[a-cA-C*, \t-]{0,12}", 0..4)) {
        let mut response = HeaderMap::new();
        for line in &lines {
            response.append(header::VARY, line.parse().unwrap());
        }
        let all = lines.join(",").to_lowercase();
        let members = all.split(',').map(|member| member.trim_matches([' ', '\t']));
        let members: BTreeSet<&str> = members.filter(|member| !member.is_empty()).collect();
        let fits = members.iter().all(|member| !member.contains(['*', ' ', '\t']));
        let oracle = (fits && members.len() <= MOST_NAMES)
            .then(|| members.into_iter().collect::<Vec<_>>().join(","));
        let names = names_of(&response, &HeaderMap::new(), false);
        prop_assert_eq!(names.map(|names| names.as_text().to_owned()), oracle);
    }

    #[test]
    fn a_list_selects_the_same_however_it_is_cut_into_lines(
        members in prop::collection::vec(("[a-z0-9]{1,4}", any::<bool>(), "[ \t]{0,2}"), 1..6),
    ) {
        let names = Names::from_text("x-a");
        let (mut one, mut other) = (String::new(), vec![String::new()]);
        for (at, (member, cut, space)) in members.iter().enumerate() {
            if at > 0 {
                one.push(',');
                if *cut {
                    other.push(String::new());
                } else if let Some(last) = other.last_mut() {
                    last.push(',');
                }
            }
            one.push_str(member);
            if let Some(last) = other.last_mut() {
                last.push_str(&format!("{space}{member}{space}"));
            }
        }
        let of = |lines: &[String]| {
            let mut request = HeaderMap::new();
            for line in lines {
                request.append("x-a", line.parse().unwrap());
            }
            selection(&names, &request)
        };
        prop_assert_eq!(of(&[one]), of(&other));
    }

    #[test]
    fn anything_at_all_can_select(line in prop::collection::vec(any::<u8>(), 0..60)) {
        let names = Names::from_text("accept-language,x-a");
        let mut request = HeaderMap::new();
        if let Ok(line) = http::HeaderValue::from_bytes(&line) {
            request.append(ACCEPT_LANGUAGE, line.clone());
            request.append("x-a", line);
        }
        let selection = selection(&names, &request);
        let _ = liked_language(&names, &selection);
        // Each part is found again, whatever is in it.
        prop_assert_eq!(parts(&names, &selection).count(), 2);
        prop_assert!(in_language(&names, &selection, b"de").is_some());
    }
}
