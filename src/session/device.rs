//! What a `User-Agent` says about a device, by a small ordered table.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::HeaderValue;
use serde::{Serialize, Serializer};

/// As much of the field is read.
const LONGEST_AGENT: usize = 512;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $variant:ident = $code:literal $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name { $($(#[$each])* $variant,)* }

        impl $name {
            const fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)* }
            }

            const fn of_code(code: u8) -> Self {
                match code { $($code => Self::$variant,)* _ => Self::Unknown }
            }

            /// Returns the word for it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

words! {
    /// The kind of a device.
    DeviceKind {
        /// A computer on or under a desk.
        Desktop = 1 "desktop",
        /// A phone.
        Phone = 2 "phone",
        /// A tablet.
        Tablet = 3 "tablet",
        /// A program that says so.
        Bot = 4 "bot",
        /// Anything else.
        Unknown = 5 "unknown device",
    }
}

words! {
    /// The operating system of a device.
    Os {
        /// Windows.
        Windows = 1 "Windows",
        /// macOS.
        MacOs = 2 "macOS",
        /// iOS or iPadOS.
        Ios = 3 "iOS",
        /// Android.
        Android = 4 "Android",
        /// ChromeOS.
        ChromeOs = 5 "ChromeOS",
        /// Linux.
        Linux = 6 "Linux",
        /// Anything else.
        Unknown = 7 "an unknown system",
    }
}

words! {
    /// The family of a browser.
    Browser {
        /// Edge.
        Edge = 1 "Edge",
        /// Opera.
        Opera = 2 "Opera",
        /// Samsung Internet.
        Samsung = 3 "Samsung Internet",
        /// Firefox.
        Firefox = 4 "Firefox",
        /// Chrome or Chromium.
        Chrome = 5 "Chrome",
        /// Safari.
        Safari = 6 "Safari",
        /// curl.
        Curl = 7 "curl",
        /// Anything else.
        Unknown = 8 "An unknown browser",
    }
}

/// What is known of a visitor's device; shown and serialised as `Firefox on Linux`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// The kind.
    pub kind: DeviceKind,
    /// The operating system.
    pub os: Os,
    /// The family of the browser.
    pub browser: Browser,
}

/// The first word found decides: Edge says Chrome, Chrome says Safari.
const BROWSERS: [(&str, Browser); 10] = [
    ("Edg", Browser::Edge),
    ("OPR/", Browser::Opera),
    ("Opera", Browser::Opera),
    ("SamsungBrowser/", Browser::Samsung),
    ("Firefox/", Browser::Firefox),
    ("FxiOS/", Browser::Firefox),
    ("CriOS/", Browser::Chrome),
    ("Chrome/", Browser::Chrome),
    ("Safari/", Browser::Safari),
    ("curl/", Browser::Curl),
];

const SYSTEMS: [(&str, Os); 8] = [
    ("Windows", Os::Windows),
    ("iPhone", Os::Ios),
    ("iPad", Os::Ios),
    ("Android", Os::Android),
    ("CrOS", Os::ChromeOs),
    ("Macintosh", Os::MacOs),
    ("Mac OS X", Os::MacOs),
    ("Linux", Os::Linux),
];

const BOTS: [&str; 4] = ["bot", "Bot", "crawler", "spider"];

impl Device {
    /// Reads the first 512 bytes of a `User-Agent`.
    #[must_use]
    pub fn of_user_agent(agent: &[u8]) -> Self {
        let agent = String::from_utf8_lossy(&agent[..agent.len().min(LONGEST_AGENT)]);
        let has = |word: &str| agent.contains(word);
        let os = first(&SYSTEMS, &agent).unwrap_or(Os::Unknown);
        let browser = first(&BROWSERS, &agent).unwrap_or(Browser::Unknown);
        let kind = if BOTS.iter().any(|word| has(word)) {
            DeviceKind::Bot
        } else if has("iPad") || has("Tablet") || (os == Os::Android && !has("Mobile")) {
            DeviceKind::Tablet
        } else if has("iPhone") || has("Mobile") {
            DeviceKind::Phone
        } else if os == Os::Unknown {
            DeviceKind::Unknown
        } else {
            DeviceKind::Desktop
        };
        Self { kind, os, browser }
    }
}

fn first<T: Copy>(table: &[(&str, T)], agent: &str) -> Option<T> {
    table
        .iter()
        .find(|(word, _)| agent.contains(word))
        .map(|(_, found)| *found)
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.browser, self.os) {
            (Browser::Unknown, Os::Unknown) => f.write_str("An unknown device"),
            (browser, Os::Unknown) => f.write_str(browser.as_str()),
            (browser, os) => write!(f, "{} on {}", browser.as_str(), os.as_str()),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What was seen of a visitor: device and address, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The device.
    pub device: Option<Device>,
    /// The address.
    pub ip: Option<IpAddr>,
}

impl Seen {
    /// The length in a record: three codes, a family, an address.
    pub const BYTES: usize = 20;

    /// Takes over what `newer` knows.
    pub(super) fn replace_known(&mut self, newer: &Self) {
        self.device = newer.device.or(self.device);
        self.ip = newer.ip.or(self.ip);
    }

    /// Writes itself for a record; zero is unknown.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        if let Some(device) = self.device {
            bytes[..3].copy_from_slice(&[
                device.kind.code(),
                device.os.code(),
                device.browser.code(),
            ]);
        }
        match self.ip {
            Some(IpAddr::V4(ip)) => {
                bytes[3] = 4;
                bytes[4..8].copy_from_slice(&ip.octets());
            }
            Some(IpAddr::V6(ip)) => {
                bytes[3] = 6;
                bytes[4..].copy_from_slice(&ip.octets());
            }
            None => {}
        }
        bytes
    }

    /// Reads what [`Seen::encode`] wrote; codes of a later version are unknown.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let device = (bytes[0] != 0).then(|| Device {
            kind: DeviceKind::of_code(bytes[0]),
            os: Os::of_code(bytes[1]),
            browser: Browser::of_code(bytes[2]),
        });
        let mut address = [0; 16];
        address.copy_from_slice(&bytes[4..]);
        let ip = match bytes[3] {
            4 => Some(Ipv4Addr::new(address[0], address[1], address[2], address[3]).into()),
            6 => Some(Ipv6Addr::from(address).into()),
            _ => None,
        };
        Self { device, ip }
    }
}

/// What a request shows of its visitor; the agent is only read where it has to be recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    agent: Option<HeaderValue>,
    ip: Option<IpAddr>,
}

impl Sighting {
    /// Takes the `User-Agent` field and the address, as far as they are known.
    #[must_use]
    pub const fn new(agent: Option<HeaderValue>, ip: Option<IpAddr>) -> Self {
        Self { agent, ip }
    }

    /// Reads the agent.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let device = self.agent.as_ref();
        Seen {
            device: device.map(|agent| Device::of_user_agent(agent.as_bytes())),
            ip: self.ip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyday_agents_are_told_apart() {
        let cases = [
            (
                "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
                "Firefox on Linux",
                DeviceKind::Desktop,
            ),
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0",
                "Edge on Windows",
                DeviceKind::Desktop,
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
                "Safari on iOS",
                DeviceKind::Phone,
            ),
            (
                "Mozilla/5.0 (Linux; Android 14; SM-X910) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
                "Chrome on Android",
                DeviceKind::Tablet,
            ),
            ("curl/8.5.0", "curl", DeviceKind::Unknown),
            (
                "Mozilla/5.0 (compatible; Googlebot/2.1)",
                "An unknown device",
                DeviceKind::Bot,
            ),
        ];
        for (agent, shown, kind) in cases {
            let device = Device::of_user_agent(agent.as_bytes());
            assert_eq!((device.to_string().as_str(), device.kind), (shown, kind));
        }
    }

    #[test]
    fn no_more_than_512_bytes_of_an_agent_are_read() {
        let named = |before: usize| {
            let agent = "x".repeat(before) + "Firefox/128.0";
            Device::of_user_agent(agent.as_bytes()).browser
        };
        assert_eq!(named(512 - "Firefox/".len()), Browser::Firefox);
        assert_eq!(named(513 - "Firefox/".len()), Browser::Unknown);
        // Not even text, and cut within a character.
        let bytes = [&[0xff; 511][..], "ü".as_bytes()].concat();
        assert_eq!(Device::of_user_agent(&bytes).kind, DeviceKind::Unknown);
        assert_eq!(Device::of_user_agent(b"").os, Os::Unknown);
    }

    #[test]
    fn what_was_seen_comes_back_from_a_record() {
        let device = Some(Device::of_user_agent(b"curl/8"));
        for ip in [
            None,
            Some("192.0.2.7".parse().unwrap()),
            Some("2001:db8::7".parse().unwrap()),
        ] {
            for device in [None, device] {
                let seen = Seen { device, ip };
                assert_eq!(Seen::decode(&seen.encode()), seen);
            }
        }
    }
}
