//! The people and services of the practice (section 4 of its contract): fixed, the same in every process.
//!
//! Try it: `curl localhost:8080/api/experts`
//!
//! Proof: `people_log_in_see_their_own_end_sessions_and_log_out_by_forms`

mod hours;

use std::time::Duration;

use serde::Serialize;
use tower_keep::MINUTE;

pub use self::hours::{day_of, is_offered, moment, next_weekday, start, starts};

/// Somebody who can log in; every password is `test`.
pub struct User {
    pub id: &'static str,
    pub name: &'static str,
    pub roles: &'static [&'static str],
}

pub const USERS: [User; 6] = [
    User {
        id: "pat",
        name: "Pat",
        roles: &["patient"],
    },
    User {
        id: "ana",
        name: "Ana",
        roles: &["expert"],
    },
    User {
        id: "ben",
        name: "Ben",
        roles: &["expert"],
    },
    User {
        id: "root",
        name: "Root",
        roles: &["admin"],
    },
    User {
        id: "adm2",
        name: "Adam",
        roles: &["admin"],
    },
    User {
        id: "sup",
        name: "Sup",
        roles: &["superadmin"],
    },
];

impl User {
    pub fn email(&self) -> String {
        format!("{}@clinic.test", self.id)
    }
}

/// Finds a user by id.
pub fn user(id: &str) -> Option<&'static User> {
    USERS.iter().find(|user| user.id == id)
}

/// Finds the user with this e-mail address.
pub fn by_email(email: &str) -> Option<&'static User> {
    USERS
        .iter()
        .find(|user| user.email().eq_ignore_ascii_case(email.trim()))
}

/// Finds the user with this e-mail address and password.
pub fn authenticate(email: &str, password: &str) -> Option<&'static User> {
    by_email(email).filter(|_| password == "test")
}

/// Payments to experts that wait for an admin's approval.
pub const TRANSFERS: [&str; 5] = ["tr1", "tr2", "tr3", "tr4", "tr5"];

/// Something that an expert offers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Service {
    pub id: &'static str,
    pub name: &'static str,
    pub minutes: u32,
    pub price_cents: i64,
}

/// Somebody who sees patients.
#[derive(Clone, Copy, Debug)]
pub struct Expert {
    pub id: &'static str,
    pub services: [Service; 2],
    pub owner: &'static str,
    /// What stands on the page until the owner writes something else.
    pub bio: &'static str,
}

const fn services(s30: i64, s60: i64) -> [Service; 2] {
    [
        Service {
            id: "s30",
            name: "Half an hour",
            minutes: 30,
            price_cents: s30,
        },
        Service {
            id: "s60",
            name: "An hour",
            minutes: 60,
            price_cents: s60,
        },
    ]
}

pub const EXPERTS: [Expert; 2] = [
    Expert {
        id: "e1",
        services: services(4000, 7000),
        owner: "ana",
        bio: "Ana listens first.",
    },
    Expert {
        id: "e2",
        services: services(5000, 9000),
        owner: "ben",
        bio: "Ben asks twice.",
    },
];

/// Finds an expert by id.
pub fn expert(id: &str) -> Option<&'static Expert> {
    EXPERTS.iter().find(|expert| expert.id == id)
}

impl Expert {
    /// Finds one of the expert's services by id.
    pub fn service(&self, id: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.id == id)
    }
}

impl Service {
    pub fn length(&self) -> Duration {
        MINUTE * self.minutes
    }
}
