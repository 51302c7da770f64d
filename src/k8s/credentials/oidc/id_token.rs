//! Expiry of an ID token: the `exp` claim of a JSON Web Token (RFC 7519, section 4.1.4). The API server verifies the
//! signature.

use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;

/// Returns the expiry of a token.
///
/// # Errors
/// Returns the problem as text that follows the token's name. The text contains nothing of the token.
pub fn expiry(token: &str) -> Result<SystemTime, String> {
    let odd = || "is not a JSON Web Token".to_owned();
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(odd());
    };
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| odd())?;
    let claims: Value = serde_json::from_slice(&claims).map_err(|_| odd())?;
    // In Go, an absent claim is the year 1: expired.
    let seconds = match &claims["exp"] {
        Value::Null => 0.0,
        claim => claim.as_f64().ok_or_else(|| "has an exp that is not a number".to_owned())?,
    };
    let since = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    // A time that the clock cannot represent counts as never.
    let never = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) * 8);
    Ok(SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(never))
}

/// Returns the expiry that a token states. `None`: it is not a JSON Web Token, or states none.
pub fn stated_expiry(token: &str) -> Option<SystemTime> {
    expiry(token).ok().filter(|expiry| *expiry > SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn of(claims: &str) -> Result<u64, String> {
        let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        expiry(&token).map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
    }

    /// Returns a token that expires after this many seconds.
    pub fn token(seconds: i64) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = format!("{{\"exp\": {}}}", now.checked_add_signed(seconds).unwrap());
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn numbers_of_all_forms_are_times() {
        for (claims, wanted) in [
            ("{\"exp\": 1700000000}", 1_700_000_000),
            ("{\"exp\": 1700000000.5}", 1_700_000_000),
            ("{\"exp\": 1.7e9, \"iat\": 1}", 1_700_000_000),
            ("{\"exp\": -5}", 0),
            ("{}", 0),
        ] {
            assert_eq!(of(claims), Ok(wanted), "{claims}");
        }
        assert!(of("{\"exp\": 1e300}").unwrap() > 1 << 34);
    }

    #[test]
    fn what_is_no_token_is_refused_without_its_text() {
        for text in ["", "a", "a.b", "a.b.c.d", "a.%.c", "a.e30=.c"] {
            assert_eq!(expiry(text).unwrap_err(), "is not a JSON Web Token", "{text}");
        }
        assert_eq!(of("[").unwrap_err(), "is not a JSON Web Token");
        assert_eq!(of("{\"exp\": \"soon\"}").unwrap_err(), "has an exp that is not a number");
    }
}
