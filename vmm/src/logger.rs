//! Log records by a template, to standard error or a file (contract `cli.md` §2.5).
//!
//! The template is parsed once; a record is formatted into one buffer and written with one call, so that lines of several threads do
//! not mix. When a level is off its records cost one comparison.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use chrono::{DateTime, Datelike, FixedOffset, Offset, TimeZone, Timelike, Utc};
use log::{LevelFilter, Log, Metadata, Record};
use thiserror::Error;

/// The template when none is given.
pub const DEFAULT_FORMAT: &str = "cloud-hypervisor: {boottime}s: <{thread}> {level}:{location} -- {msg}";

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// A token that does not exist.
    #[error("Unknown format token '{{{0}}}'")]
    UnknownToken(String),
    /// A brace that does not close.
    #[error("Unterminated '{{' in format string")]
    Unterminated,
    /// A brace that was not opened.
    #[error("Unmatched '}}' in format string")]
    Unmatched,
    /// The file cannot be written.
    #[error("Error creating log file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// Set up twice.
    #[error("Error setting up logger")]
    Twice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    BootTime,
    WallClock,
    Glog { local: bool },
    Pid,
    Tid,
    Thread,
    Level,
    LevelChar,
    Location,
    Message,
    Clock { part: Part, local: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    Micros,
    Offset,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Token(Token),
}

impl Piece {
    /// Whether the host's time zone matters to it.
    fn is_local(&self) -> bool {
        matches!(self, Piece::Token(Token::Glog { local: true } | Token::Clock { local: true, .. }))
    }
}

/// A parsed template.
#[derive(Debug, PartialEq, Eq)]
struct Template(Vec<Piece>);

impl Template {
    fn parse(text: &str) -> Result<Self, LogError> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '{' | '}' if chars.peek() == Some(&c) => {
                    chars.next();
                    plain.push(c);
                }
                '{' => {
                    let mut name = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some(c) => name.push(c),
                            None => return Err(LogError::Unterminated),
                        }
                    }
                    if !plain.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    }
                    pieces.push(Piece::Token(token(&name).ok_or(LogError::UnknownToken(name))?));
                }
                '}' => return Err(LogError::Unmatched),
                c => plain.push(c),
            }
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Template(pieces))
    }
}

fn token(name: &str) -> Option<Token> {
    let (local, rest) = match name.strip_prefix("local") {
        Some(rest) => (true, rest),
        None => (false, name),
    };
    let part = match rest {
        "glog" => return Some(Token::Glog { local }),
        "year" => Part::Year,
        "month" => Part::Month,
        "day" => Part::Day,
        "hour" => Part::Hour,
        "minute" => Part::Minute,
        "second" => Part::Second,
        "micros" => Part::Micros,
        "offset" => Part::Offset,
        _ => {
            return Some(match name {
                "boottime" => Token::BootTime,
                "wallclock" => Token::WallClock,
                "pid" => Token::Pid,
                "tid" => Token::Tid,
                "thread" => Token::Thread,
                "level" => Token::Level,
                "levelchar" => Token::LevelChar,
                "location" => Token::Location,
                "msg" => Token::Message,
                _ => return None,
            });
        }
    };
    Some(Token::Clock { part, local })
}

struct Logger {
    begun: Instant,
    template: Template,
    output: Mutex<Box<dyn Write + Send>>,
    /// What `output` leads to, unless it is standard error.
    file: Option<PathBuf>,
    /// Whether it was told that the file takes nothing.
    failed: AtomicBool,
}

/// Sets logging up: verbosity 0 shows warnings, 1 also information, 2 debugging, more everything.
///
/// # Errors
/// A bad template, a file that cannot be created.
pub fn init(verbosity: u8, file: Option<&Path>, format: &str) -> Result<(), LogError> {
    // Before the file: a bad template leaves it as it was.
    let template = Template::parse(format)?;
    if template.0.iter().any(Piece::is_local) {
        local(Utc::now());
    }
    let output: Box<dyn Write + Send> = match file {
        Some(path) => {
            let file = create(path).map_err(|source| LogError::File { path: path.to_owned(), source })?;
            sandbox::also_tell(file.as_raw_fd());
            Box::new(file)
        }
        None => Box::new(io::stderr()),
    };
    let logger = Logger {
        begun: Instant::now(),
        template,
        output: Mutex::new(output),
        file: file.map(Path::to_owned),
        failed: AtomicBool::new(false),
    };
    log::set_max_level(match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
    log::set_boxed_logger(Box::new(logger)).map_err(|_| LogError::Twice)
}

/// Creates or empties the file. A FIFO is not waited for: without a reader it is refused.
fn create(path: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK).open(path);
    file.map_err(|e| match e.raw_os_error() {
        Some(libc::ENXIO) => io::Error::other("nobody reads from this FIFO"),
        _ => e,
    })
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut line = String::with_capacity(160);
        let now = Utc::now();
        for piece in &self.template.0 {
            // Writing to a String cannot fail.
            let _ = match piece {
                Piece::Text(text) => line.write_str(text),
                Piece::Token(token) => self.show(*token, record, now, &mut line),
            };
        }
        line.push_str("\r\n");
        let wrote = self.output.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
        if let (Err(e), Some(file)) = (wrote, &self.file)
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            let text =
                format!("Warning: cannot write to log file {}, records are lost: {e}\n", file.display());
            // There is nowhere left to report that this cannot be written either.
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }

    fn flush(&self) {}
}

impl Logger {
    fn show(
        &self,
        token: Token,
        record: &Record<'_>,
        now: DateTime<Utc>,
        out: &mut String,
    ) -> std::fmt::Result {
        match token {
            Token::BootTime => write!(out, "{:>10.6}", self.begun.elapsed().as_secs_f64()),
            Token::WallClock => write!(out, "{}", now.format("%Y-%m-%dT%H:%M:%S%.6fZ")),
            Token::Glog { local: false } => write!(out, "{}", now.format("%m%d %H:%M:%S%.6f")),
            Token::Glog { local: true } => {
                write!(out, "{}", local(now).format("%m%d %H:%M:%S%.6f"))
            }
            Token::Pid => write!(out, "{}", std::process::id()),
            // SAFETY: gettid has no preconditions.
            Token::Tid => write!(out, "{}", unsafe { libc::gettid() }),
            Token::Thread => Plain(out).write_str(std::thread::current().name().unwrap_or("anonymous")),
            Token::Level => out.write_str(record.level().as_str()),
            Token::LevelChar => out.write_str(&record.level().as_str()[..1]),
            Token::Location => match (record.file(), record.line()) {
                (Some(file), Some(line)) => write!(out, "{file}:{line}"),
                _ => out.write_str(record.target()),
            },
            Token::Message => Plain(out).write_fmt(*record.args()),
            Token::Clock { part, local: false } => clock(part, &now, out),
            Token::Clock { part, local: true } => clock(part, &local(now), out),
        }
    }
}

/// Takes text with names in it that others chose: it stays one record.
struct Plain<'a>(&'a mut String);

impl std::fmt::Write for Plain<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        spec::plain::escape(self.0, text, &[]);
        Ok(())
    }
}

/// The same moment in the host's time zone. The C library reads the zone's file when it is first asked, and remembers it: threads that may
/// not open files are told as well.
fn local(time: DateTime<Utc>) -> DateTime<FixedOffset> {
    let seconds: libc::time_t = time.timestamp();
    // SAFETY: a zeroed value is a time; the call reads the one and writes the other, and answers null if it cannot.
    let offset = unsafe {
        let mut parts: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&raw const seconds, &raw mut parts).is_null() { 0 } else { parts.tm_gmtoff }
    };
    let offset = i32::try_from(offset).ok().and_then(FixedOffset::east_opt);
    time.with_timezone(&offset.unwrap_or_else(|| Utc.fix()))
}

fn clock<Z: TimeZone>(part: Part, time: &DateTime<Z>, out: &mut String) -> std::fmt::Result
where
    Z::Offset: std::fmt::Display,
{
    match part {
        Part::Year => write!(out, "{:04}", time.year()),
        Part::Month => write!(out, "{:02}", time.month()),
        Part::Day => write!(out, "{:02}", time.day()),
        Part::Hour => write!(out, "{:02}", time.hour()),
        Part::Minute => write!(out, "{:02}", time.minute()),
        Part::Second => write!(out, "{:02}", time.second()),
        Part::Micros => write!(out, "{:06}", time.nanosecond() / 1000 % 1_000_000),
        Part::Offset => write!(out, "{}", time.format("%:z")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(format: &str) -> String {
        show_of(format, "hello")
    }

    fn show_of(format: &str, message: &str) -> String {
        let logger = Logger {
            begun: Instant::now(),
            template: Template::parse(format).unwrap(),
            output: Mutex::new(Box::new(io::sink())),
            file: None,
            failed: AtomicBool::new(false),
        };
        let mut out = String::new();
        let now = Utc.with_ymd_and_hms(2026, 1, 2, 3, 4, 5).unwrap();
        for piece in &logger.template.0 {
            match piece {
                Piece::Text(t) => out.push_str(t),
                Piece::Token(t) => {
                    let args = format_args!("{message}");
                    let mut record = Record::builder();
                    record.level(log::Level::Warn).file(Some("a.rs")).line(Some(7)).args(args);
                    logger.show(*t, &record.build(), now, &mut out).unwrap();
                }
            }
        }
        out
    }

    #[test]
    fn tokens_are_replaced_and_doubled_braces_kept() {
        assert_eq!(show("{{{level}}} {levelchar}:{location} -- {msg}"), "{WARN} W:a.rs:7 -- hello");
        assert_eq!(show("{wallclock} {glog}"), "2026-01-02T03:04:05.000000Z 0102 03:04:05.000000");
        assert_eq!(
            show("{year}{month}{day}{hour}{minute}{second}.{micros}{offset}"),
            "20260102030405.000000+00:00"
        );
    }

    #[test]
    fn a_message_is_one_record_and_says_nothing_to_a_terminal() {
        let told = show_of("{msg}", "disk \u{1b}[2J\r\nadded \u{9b}ü");
        assert_eq!(told, r"disk \u001b[2J\r\nadded \u009bü");
    }

    #[test]
    fn bad_templates_are_refused_in_the_contracts_words() {
        let refuse = |t: &str| Template::parse(t).unwrap_err().to_string();
        assert_eq!(refuse("{nope}"), "Unknown format token '{nope}'");
        assert_eq!(refuse("{msg"), "Unterminated '{' in format string");
        assert_eq!(refuse("msg}"), "Unmatched '}' in format string");
    }
}
