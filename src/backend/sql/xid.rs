//! The database's own name of a transaction.

use std::fmt;

use smallvec::SmallVec;

/// What names a transaction on Postgres, `number@run`; short enough to lie where it is kept.
#[derive(Clone, Default)]
pub(crate) struct Xid(SmallVec<[u8; 64]>);

impl Xid {
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    #[cfg(feature = "postgres")]
    pub(super) fn push_str(&mut self, rest: &str) {
        self.0.extend_from_slice(rest.as_bytes());
    }
}

impl From<&str> for Xid {
    fn from(name: &str) -> Self {
        Self(SmallVec::from_slice(name.as_bytes()))
    }
}

impl fmt::Debug for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(feature = "postgres")]
mod read {
    use sqlx::error::BoxDynError;
    use sqlx::postgres::{PgTypeInfo, PgValueRef};
    use sqlx::{Decode, Postgres, Type};

    use super::Xid;

    impl Type<Postgres> for Xid {
        fn type_info() -> PgTypeInfo {
            <str as Type<Postgres>>::type_info()
        }

        fn compatible(of: &PgTypeInfo) -> bool {
            <str as Type<Postgres>>::compatible(of)
        }
    }

    impl<'r> Decode<'r, Postgres> for Xid {
        fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
            <&str as Decode<Postgres>>::decode(value).map(Self::from)
        }
    }
}
