//! A command as it goes out (RESP2): its words, one behind the other in one buffer.

use crate::core::Digits;

/// A command under construction.
#[derive(Clone, Debug)]
pub(super) struct Command {
    packed: Vec<u8>,
    words: u64,
}

impl Command {
    /// Starts with the command's name.
    pub(super) fn new(name: &str) -> Self {
        Self::with_capacity(name, 64)
    }

    /// Starts with the command's name; `size` is about what the other words take.
    pub(super) fn with_capacity(name: &str, size: usize) -> Self {
        Self::empty(size).arg(name)
    }

    /// Makes a command of all its words.
    pub(super) fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        words.into_iter().fold(Self::empty(128), Self::arg)
    }

    fn empty(size: usize) -> Self {
        Self {
            packed: Vec::with_capacity(size),
            words: 0,
        }
    }

    /// Appends a word.
    pub(super) fn arg(mut self, word: impl AsRef<[u8]>) -> Self {
        self.push(word.as_ref());
        self
    }

    /// Appends a whole number.
    pub(super) fn num(mut self, number: i128) -> Self {
        match u64::try_from(number) {
            Ok(number) => self.push(Digits::of(number).text()),
            Err(_) => self.push(number.to_string().as_bytes()),
        }
        self
    }

    fn push(&mut self, word: &[u8]) {
        head(b'$', word.len() as u64, &mut self.packed);
        self.packed.extend_from_slice(word);
        self.packed.extend_from_slice(b"\r\n");
        self.words += 1;
    }

    /// Puts other words in the place of the first two.
    pub(super) fn beginning(&self, first: &str, second: &str) -> Self {
        let mut rest = &self.packed[..];
        for _ in 0..2 {
            rest = after_word(rest);
        }
        let mut other = Self::with_capacity(first, second.len() + rest.len() + 64).arg(second);
        other.packed.extend_from_slice(rest);
        other.words = self.words;
        other
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.words == 0
    }

    /// Appends the whole command to what goes out.
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        out.reserve(self.packed.len() + 16);
        head(b'*', self.words, out);
        out.extend_from_slice(&self.packed);
    }
}

fn head(kind: u8, number: u64, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(Digits::of(number).text());
    out.extend_from_slice(b"\r\n");
}

/// What lies behind the first word.
fn after_word(packed: &[u8]) -> &[u8] {
    let mut length = 0;
    for (at, byte) in packed.iter().enumerate().skip(1) {
        if *byte == b'\r' {
            return packed.get(at + 2 + length + 2..).unwrap_or_default();
        }
        length = length * 10 + usize::from(byte - b'0');
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(command: &Command) -> Vec<u8> {
        let mut out = b"before".to_vec();
        command.write_to(&mut out);
        out.split_off(6)
    }

    proptest! {
        #[test]
        fn it_goes_out_as_the_driver_would_send_it(words in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20), numbers in prop::collection::vec(any::<i128>(), 0..3)) {
            let (mut own, mut drivers) = (Command::new("EVALSHA").arg("sha"), redis::cmd("EVALSHA"));
            drivers.arg("sha");
            for word in &words {
                own = own.arg(word);
                drivers.arg(&word[..]);
            }
            for number in &numbers {
                own = own.num(*number);
                drivers.arg(number);
            }
            prop_assert_eq!(written(&own), drivers.get_packed_command());
            let mut other = redis::cmd("EVAL");
            other.arg("a text\r\n");
            for word in drivers.args_iter().skip(2) {
                if let redis::Arg::Simple(word) = word {
                    other.arg(word);
                }
            }
            prop_assert_eq!(written(&own.beginning("EVAL", "a text\r\n")), other.get_packed_command());
        }
    }
}
