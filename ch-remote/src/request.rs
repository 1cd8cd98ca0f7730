//! From a command's arguments to what is asked.

use std::io::Read;
use std::os::fd::RawFd;

use api::action::{Body, Field, FieldValue, Route, Written};
use api::bodies::{Until, WaitDevice};
use api::{PciDeviceInfo, bodies};
use catalog::{RestoreRequest, RestoreSpec, VmSpec};
use clap::ArgMatches;
use serde_json::{Map, Value, json};
use spec::{Bytes, Spec, Value as _};

use crate::{RESTORE, WAIT};

/// What a command asks.
#[derive(Debug)]
pub struct Request {
    /// The body, if the question has one.
    pub body: Option<String>,
    /// Descriptors that go along.
    pub descriptors: Vec<RawFd>,
    wait: Option<Wait>,
}

#[derive(Debug)]
struct Wait {
    until: Until,
    milliseconds: u64,
    /// The device, where the answer does not name it.
    id: Option<String>,
}

/// What a command of this route can wait for.
pub(crate) fn waits_for(route: &Route) -> Option<Until> {
    match route.body {
        Body::Device(_) => Some(Until::Ready),
        Body::Json(..) if route.command == "remove-device" => Some(Until::Removed),
        _ => None,
    }
}

/// Reads a command's arguments.
///
/// # Errors
/// Messages, outermost first: a file that cannot be read, a value that cannot be understood.
pub fn request(route: &Route, arguments: &ArgMatches) -> Result<Request, Vec<String>> {
    let text = |name: &str| arguments.try_get_one::<String>(name).ok().flatten().map(String::as_str);
    let (mut body, mut descriptors) = (None, Vec::new());
    match route.body {
        Body::None(_) | Body::Ignored(_) => {}
        Body::Json(_, Written::File) => body = text("path").map(read).transpose()?,
        Body::Json(_, Written::Fields(fields)) => {
            let mut object = Map::new();
            for field in fields {
                if let Some(value) = value(field, arguments)? {
                    object.insert(field.json.to_owned(), value);
                }
            }
            body = Some(Value::Object(object).to_string());
        }
        Body::Restore => {
            let restore = RestoreSpec::parse(text(RESTORE).unwrap_or_default()).map_err(|e| e.chain())?;
            let overrides = VmSpec::overrides(arguments).map_err(|e| e.chain())?;
            let request = RestoreRequest { restore, overrides };
            descriptors = request.lend();
            body = Some(serde_json::to_string(&request).map_err(|e| vec![e.to_string()])?);
        }
        Body::Device(hot) => {
            let mut device = (hot.from_text)(text("device").unwrap_or_default()).map_err(|e| e.chain())?;
            descriptors = device.lend();
            body = Some(device.to_json().map_err(|e| vec![e.to_string()])?);
        }
    }
    let wait = match waits_for(route) {
        Some(until) => arguments
            .get_one::<f64>(WAIT)
            .map(|seconds| milliseconds(*seconds))
            .transpose()?
            .map(|milliseconds| Wait { until, milliseconds, id: text("id").map(str::to_owned) }),
        None => None,
    };
    Ok(Request { body, descriptors, wait })
}

impl Request {
    /// The question to be asked next, now that the first was answered: the body of `vm.wait-device`.
    pub fn then(&self, answer: &str) -> Option<String> {
        let wait = self.wait.as_ref()?;
        let id = match &wait.id {
            Some(id) => id.clone(),
            // A device that was only described has no answer, and there is nothing to wait for.
            None => serde_json::from_str::<PciDeviceInfo>(answer).ok()?.id,
        };
        serde_json::to_string(&WaitDevice { id, until: wait.until, timeout_ms: wait.milliseconds }).ok()
    }
}

fn value(field: &Field, arguments: &ArgMatches) -> Result<Option<Value>, Vec<String>> {
    if let FieldValue::Seconds = field.value {
        let seconds = arguments.get_one::<f64>(field.json);
        return Ok(seconds.map(|s| milliseconds(*s)).transpose()?.map(Value::from));
    }
    let Some(text) = arguments.get_one::<String>(field.json) else { return Ok(None) };
    Ok(Some(match field.value {
        FieldValue::Size => {
            let size =
                Bytes::convert(text).map_err(|hint| vec![format!("Cannot understand {text:?}"), hint])?;
            json!(size.0)
        }
        _ => json!(text),
    }))
}

fn milliseconds(seconds: f64) -> Result<u64, Vec<String>> {
    let most = bodies::MAX_WAIT_MS / 1000;
    if (0.0..=most as f64).contains(&seconds) {
        Ok((seconds * 1000.0) as u64)
    } else {
        Err(vec![format!("Cannot wait {seconds} seconds: 0 to {most} are possible")])
    }
}

fn read(path: &str) -> Result<String, Vec<String>> {
    let mut text = String::new();
    let result = if path == "-" {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(path).map(|t| text = t)
    };
    result.map(|()| text).map_err(|e| vec![format!("Cannot read {path}"), e.to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str]) -> Result<Request, Vec<String>> {
        let matches = crate::command().try_get_matches_from([&["ch-remote"], words].concat()).unwrap();
        let (name, arguments) = matches.subcommand().unwrap();
        request(crate::route(name).unwrap(), arguments)
    }

    #[test]
    fn fields_become_json() {
        let body =
            |words: &[&str]| -> Value { serde_json::from_str(&asked(words).unwrap().body.unwrap()).unwrap() };
        assert_eq!(body(&["remove-device", "d0"]), json!({"id": "d0"}));
        let resize = ["resize-disk", "--disk", "d0", "--size", "2M"];
        assert_eq!(body(&resize), json!({"id": "d0", "desired_size": 2 << 20}));
        let wait = ["wait-device", "d0", "--until", "ready"];
        assert_eq!(body(&wait), json!({"id": "d0", "until": "ready"}));
        let wait = [&wait[..], &["--timeout", "0.5"]].concat();
        assert_eq!(body(&wait), json!({"id": "d0", "until": "ready", "timeout_ms": 500}));
        assert!(asked(&["resize-disk", "--disk", "d0", "--size", "2Q"]).is_err());
        assert!(asked(&["wait-device", "d0", "--until", "ready", "--timeout", "601"]).is_err());
    }

    #[test]
    fn devices_are_written_as_after_their_flag_and_their_descriptors_go_along() {
        let net = asked(&["add-net", "fd=[5,6],num_queues=4,mac=2e:00:00:00:00:01"]).unwrap();
        assert_eq!(net.descriptors, [5, 6]);
        let body: Value = serde_json::from_str(&net.body.unwrap()).unwrap();
        assert_eq!((&body["num_queues"], body.get("fds")), (&json!(4), None));
        assert_eq!(asked(&["add-disk", "nope=1"]).unwrap_err()[0], "Error parsing --disk");
    }

    #[test]
    fn waiting_follows_where_there_is_something_to_wait_for() {
        let info = r#"{"id":"_disk0","bdf":"0000:00:05.0"}"#;
        let plain = asked(&["add-disk", "path=/x"]).unwrap();
        assert_eq!(plain.then(info), None);
        let add = asked(&["add-disk", "path=/x", "--wait"]).unwrap();
        let question: WaitDevice = serde_json::from_str(&add.then(info).unwrap()).unwrap();
        assert_eq!(question, WaitDevice { id: "_disk0".into(), until: Until::Ready, timeout_ms: 10_000 });
        assert_eq!(add.then(""), None);
        let remove = asked(&["remove-device", "d", "--wait", "2"]).unwrap();
        let question: WaitDevice = serde_json::from_str(&remove.then("").unwrap()).unwrap();
        assert_eq!(question, WaitDevice { id: "d".into(), until: Until::Removed, timeout_ms: 2000 });
    }
}
