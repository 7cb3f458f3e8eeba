//! What comes in: a body that is not what its route takes is one kind of fault, whatever is wrong with it.
//!
//! Try it: `curl -i localhost:8080/api/login -H 'content-type: application/json' -d '{'`
//!
//! Proof: `wrong_wishes_get_their_code_and_hold_nothing`

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;

use super::Fault;
use crate::state::App;

/// A JSON body; whatever is wrong with it is 400 `VALIDATION`, or 413 when it is too large.
pub struct Input<T>(pub T);

impl<T: serde::de::DeserializeOwned> FromRequest<App> for Input<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, app: &App) -> Result<Self, Fault> {
        match axum::Json::from_request(request, app).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(JsonRejection::BytesRejection(rejection))
                if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE =>
            {
                Err(Fault::TOO_LARGE)
            }
            Err(_) => Err(Fault::validation(
                "the body is not the JSON that this route takes",
            )),
        }
    }
}
