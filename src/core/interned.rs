//! What a configuration says again and again: text that lives as long as the process, so that nobody counts its owners.

use http::HeaderValue;
use parking_lot::Mutex;

/// The most texts that are kept for good; whoever comes later shares a counted one.
const MOST: usize = 1_024;

static TEXTS: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// Returns `text` as the value of a field; `None` if it cannot be one. For configurations only, never for what clients say.
pub(crate) fn interned_field(text: &[u8]) -> Option<HeaderValue> {
    let counted = HeaderValue::from_bytes(text).ok()?;
    let Ok(text) = counted.to_str() else {
        return Some(counted);
    };
    let mut texts = TEXTS.lock();
    let kept = match texts.iter().find(|kept| **kept == text) {
        Some(kept) => kept,
        None if texts.len() == MOST => return Some(counted),
        None => {
            let kept: &'static str = Box::leak(Box::from(text));
            texts.push(kept);
            kept
        }
    };
    Some(HeaderValue::from_static(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_is_kept_once_and_too_many_are_counted() {
        let before = interned_field(b"\"ip\";q=1").unwrap();
        assert_eq!(before, interned_field(b"\"ip\";q=1").unwrap());
        let same = |text: &str| TEXTS.lock().iter().filter(|kept| **kept == text).count();
        assert_eq!(same("\"ip\";q=1"), 1);
        for number in 0..2 * MOST {
            let text = number.to_string();
            assert_eq!(interned_field(text.as_bytes()).unwrap(), text.as_str());
        }
        assert!(TEXTS.lock().len() <= MOST);
        assert_eq!(interned_field(b"a\nb"), None);
    }
}
