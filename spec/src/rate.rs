//! Limits of bandwidth and operations: the keys `bw_*` and `ops_*`, and `rate_limiter_config` in JSON.
//!
//! A limit is a bucket of tokens, bytes or operations, that holds `size` of them and is filled from empty in `refill_time`; tokens
//! of `one_time_burst` are there once and go first. What a token buys is the device's business.

use serde::{Deserialize, Serialize};

use crate::grammar::{Key, Options, ParseError};
use crate::value::take;
use crate::{Facts, Part, Refusal, Spec};

/// A bucket of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucket {
    /// Tokens that `refill_time` brings: bytes or operations.
    pub size: u64,
    /// Tokens on top, which never come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds.
    pub refill_time: u64,
}

impl TokenBucket {
    /// Whether it limits anything.
    pub fn is_active(&self) -> bool {
        self.size != 0 && self.refill_time != 0
    }
}

/// `rate_limiter_config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RateLimiterConfig {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// Limits of bandwidth and operations, as part of a device's specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RateLimit {
    /// The limits, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
}

impl RateLimit {
    /// A limit of operations alone.
    pub fn of_operations(ops: TokenBucket) -> Self {
        RateLimit { rate_limiter_config: Some(RateLimiterConfig { bandwidth: None, ops: Some(ops) }) }
    }

    /// The limit of bytes, if there is one.
    pub fn bandwidth(&self) -> Option<TokenBucket> {
        self.rate_limiter_config?.bandwidth.filter(TokenBucket::is_active)
    }

    /// The limit of operations, if there is one.
    pub fn operations(&self) -> Option<TokenBucket> {
        self.rate_limiter_config?.ops.filter(TokenBucket::is_active)
    }

    /// Whether anything is limited.
    pub fn is_active(&self) -> bool {
        self.bandwidth().or(self.operations()).is_some()
    }
}

/// Names of the keys of one bucket, and their help.
type BucketKeys = [(&'static str, &'static str); 3];

const BANDWIDTH: BucketKeys = [
    ("bw_size", "Bytes that may be moved per bw_refill_time; no limit when either is 0."),
    ("bw_one_time_burst", "Bytes that may be moved on top, once."),
    ("bw_refill_time", "Milliseconds in which bw_size bytes may be moved."),
];

const OPERATIONS: BucketKeys = [
    ("ops_size", "Requests that may be served per ops_refill_time; no limit when either is 0."),
    ("ops_one_time_burst", "Requests that may be served on top, once."),
    ("ops_refill_time", "Milliseconds in which ops_size requests may be served."),
];

fn bucket(options: &Options, keys: BucketKeys) -> Result<Option<TokenBucket>, ParseError> {
    let [size, one_time_burst, refill_time] = keys.map(|(name, _)| take(options, name, 0));
    let bucket = TokenBucket {
        size: size?,
        one_time_burst: Some(one_time_burst?).filter(|burst| *burst != 0),
        refill_time: refill_time?,
    };
    Ok(Some(bucket).filter(TokenBucket::is_active))
}

impl Part for RateLimit {
    fn keys() -> Vec<Key> {
        let key = |(name, help)| Key {
            name,
            syntax: "<number>",
            default: "0".to_owned(),
            help,
            bare: false,
            fields: &["rate_limiter_config"],
        };
        BANDWIDTH.into_iter().chain(OPERATIONS).map(key).collect()
    }

    fn take(options: &mut Options) -> Result<Self, ParseError> {
        let config =
            RateLimiterConfig { bandwidth: bucket(options, BANDWIDTH)?, ops: bucket(options, OPERATIONS)? };
        let any = config.bandwidth.or(config.ops).is_some();
        Ok(RateLimit { rate_limiter_config: any.then_some(config) })
    }
}

crate::spec! {
    /// A limit that several disks share: those that name it with rate_limit_group.
    pub struct RateLimitGroupSpec: "rate-limit-group" {
        flatten {
            /// The limits.
            limits: RateLimit,
        }
        fields {
            /// Its name, which must be given and be that of no device.
            "id" => id: String = String::new(),
        }
        unsupported {}
    }
}

impl Spec for RateLimitGroupSpec {
    const FLAG: &'static str = RateLimitGroupSpec::FLAG;
    const ABOUT: &'static str = RateLimitGroupSpec::ABOUT;

    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        if self.id.is_empty() || !self.limits.is_active() {
            return Err(Refusal::invalid(INVALID_GROUP));
        }
        Ok(())
    }
}

/// What is said of a group that cannot be, or cannot be used.
const INVALID_GROUP: &str = "Invalid rate-limiter group";

/// Checks what a device says of its limits: its own, or those of a group.
///
/// # Errors
/// Both, or a group that does not exist.
pub fn check(own: &RateLimit, group: Option<&str>, facts: &Facts) -> Result<(), Refusal> {
    match group {
        Some(group) if own.is_active() || !facts.rate_limit_groups.iter().any(|g| g.id == group) => {
            Err(Refusal::invalid(INVALID_GROUP))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_needs_size_and_refill_time() {
        let parse = |text: &str| RateLimitGroupSpec::parse(text).unwrap();
        let spec = parse("id=g,bw_size=1000,bw_refill_time=100,ops_size=7");
        assert_eq!(
            spec.limits.bandwidth(),
            Some(TokenBucket { size: 1000, one_time_burst: None, refill_time: 100 })
        );
        assert_eq!(spec.limits.operations(), None);
        let spec = parse("id=g,ops_size=1,ops_one_time_burst=2,ops_refill_time=3");
        assert_eq!(
            spec.limits.operations(),
            Some(TokenBucket { size: 1, one_time_burst: Some(2), refill_time: 3 })
        );
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(
            text,
            r#"{"rate_limiter_config":{"ops":{"size":1,"one_time_burst":2,"refill_time":3}},"id":"g"}"#
        );
        assert_eq!(serde_json::from_str::<RateLimitGroupSpec>(&text).unwrap(), spec);
        assert_eq!(parse("id=g,bw_size=0,bw_refill_time=1").limits, RateLimit::default());
        assert!(RateLimitGroupSpec::parse("id=g,bw_size=1K").is_err(), "plain numbers only");
    }

    #[test]
    fn a_group_must_limit_something_and_a_device_must_name_one_that_exists() {
        let facts = |text: &str| {
            let group = RateLimitGroupSpec::parse(text).unwrap();
            group
                .check(&Facts::default())
                .map(|()| Facts { rate_limit_groups: vec![group], ..Facts::default() })
        };
        for text in ["id=g", "bw_size=1,bw_refill_time=1", "id=g,bw_size=1", "id=g,ops_refill_time=1"] {
            assert_eq!(facts(text).unwrap_err().to_string(), INVALID_GROUP, "{text}");
        }
        let facts = facts("id=g,bw_size=1,bw_refill_time=1").unwrap();
        let own = facts.rate_limit_groups[0].limits;
        let none = RateLimit::default();
        assert!(check(&own, None, &facts).is_ok());
        assert!(check(&none, Some("g"), &facts).is_ok());
        assert!(check(&none, Some("h"), &facts).is_err());
        assert!(check(&own, Some("g"), &facts).is_err());
    }
}
