//! Buckets, with a clock of our own.

use spec::{RateLimitGroupSpec, Spec};

use super::*;

fn group(text: &str) -> RateLimitGroupSpec {
    RateLimitGroupSpec::parse(&format!("id=g,{text}")).unwrap()
}

fn limiter(text: &str) -> Arc<Limiter> {
    Limiter::new(&group(text).limits).unwrap()
}

/// Serves requests of `bytes` each for `time`, with timers that go off late by `late`; returns how many.
fn serve(limiter: &Limiter, begin: Instant, bytes: u64, time: Duration, late: Duration) -> u64 {
    let (mut now, mut count) = (begin, 0);
    while now < begin + time {
        match limiter.pause(now) {
            Some(pause) => now += pause + late,
            None => {
                limiter.count(now, bytes);
                count += 1;
            }
        }
    }
    count
}

#[test]
fn the_rate_is_right_to_a_few_percent_over_ten_seconds_whatever_the_size() {
    let seconds = Duration::from_secs(10);
    for (text, bytes, want) in [
        ("bw_size=100000000,bw_refill_time=1000", 4096, 1_000_000_000 / 4096),
        ("bw_size=10000000,bw_refill_time=100", 4096, 1_000_000_000 / 4096),
        // A bucket smaller than a request, one that is filled in a millisecond, a very fast one.
        ("bw_size=1000,bw_refill_time=1", 1 << 20, 10_000_000 / (1 << 20)),
        ("bw_size=100000,bw_refill_time=1", 512, 1_000_000_000 / 512),
        ("bw_size=20000000000,bw_refill_time=1000", 1 << 20, 200_000_000_000 / (1 << 20)),
        ("ops_size=1000,ops_refill_time=1000", 4096, 10_000),
        ("ops_size=1,ops_refill_time=7", 4096, 10_000 / 7),
        // The stricter one decides.
        ("ops_size=100,ops_refill_time=100,bw_size=4096,bw_refill_time=100", 4096, 100),
        ("ops_size=10,ops_refill_time=100,bw_size=409600,bw_refill_time=100", 4096, 1000),
    ] {
        for late in [Duration::ZERO, Duration::from_micros(80)] {
            let limiter = limiter(text);
            let begin = limiter.begin + Duration::from_secs(77);
            let count = serve(&limiter, begin, bytes, seconds, late);
            assert!(count.abs_diff(want) <= want * 3 / 100 + 1, "{text}: {count} instead of {want}");
            // And there is no credit left: the next ten seconds are exact.
            let count = serve(&limiter, begin + seconds, bytes, seconds, late);
            assert!(count.abs_diff(want) <= want / 100 + 1, "{text}: {count} in the next ten seconds");
        }
    }
}

#[test]
fn a_one_time_burst_comes_once_and_first() {
    let limiter = limiter("ops_size=100,ops_refill_time=1000,ops_one_time_burst=500");
    let begin = limiter.begin;
    let at_once = |now| serve(&limiter, now, 0, Duration::from_nanos(1), Duration::ZERO);
    // What was saved up comes on top of the burst.
    assert_eq!(at_once(begin), 500 + 25 + 1);
    let later = begin + Duration::from_secs(100);
    assert_eq!(at_once(later), 25 + 1);
}

#[test]
fn extreme_limits_neither_overflow_nor_let_anything_through() {
    let limiter = limiter(&format!(
        "bw_size=1,bw_refill_time={max},ops_size={max},ops_refill_time={max}",
        max = u64::MAX
    ));
    let begin = limiter.begin;
    assert_eq!(limiter.pause(begin), None);
    limiter.count(begin, u64::MAX);
    for _ in 0..3 {
        assert_eq!(limiter.pause(begin + Duration::from_secs(1 << 30)), Some(LONGEST_WAIT));
        limiter.count(begin, u64::MAX);
    }
}

#[test]
fn threads_share_a_bucket_without_losing_a_token() {
    let limiter = limiter("bw_size=1000000,bw_refill_time=1000,bw_one_time_burst=1001");
    let now = limiter.begin;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50_000).for_each(|_| limiter.count(now, 7)));
        }
    });
    let bucket = limiter.bandwidth.as_ref().unwrap();
    assert_eq!(bucket.burst.load(Relaxed), 0);
    // 1.4 MB less the burst, at 16 ticks a microsecond and byte times a thousand.
    assert_eq!(bucket.paid.load(Relaxed), (4 * 50_000 * 7 - 1001) * 1000 * TICKS);
}

#[test]
fn the_devices_of_a_group_find_one_limiter() {
    let facts = Facts { rate_limit_groups: vec![group("ops_size=1,ops_refill_time=1")], ..Facts::default() };
    let kept = Kept::default();
    let find = |own: &RateLimit, id| Limiter::find(own, id, &facts, &kept);
    let none = RateLimit::default();
    let (a, b) = (find(&none, Some("g")).unwrap(), find(&none, Some("g")).unwrap());
    assert!(Arc::ptr_eq(&a, &b));
    assert!(find(&none, Some("h")).is_none() && find(&none, None).is_none());
    let own = group("ops_size=1,ops_refill_time=1").limits;
    assert!(!Arc::ptr_eq(&find(&own, None).unwrap(), &find(&own, None).unwrap()));
}
