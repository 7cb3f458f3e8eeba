//! What the tests share: servers of their own, services to drive, proxies that cut.
