//! Devices that other processes serve: how long they are waited for, and what is said of those that are of no use.

use std::time::Duration;

use device::{Calls, Host};
use sandbox::Set;
use spec::{Kind, Refusal};
use vhost_user::BackError;
use vhost_user::front::{Parked, Remote, Way, Wish, calls};

/// What devices that are nothing but the other process' ask of the kernel here.
pub(crate) const CALLS: Calls = Calls {
    own: SEARCH,
    shared: &[calls::TALK, calls::SEARCH],
    registers: &[calls::TALK],
    upkeep: &[calls::HAND_OVER],
    host: FIND,
};

/// On the thread that looks for a back end.
pub(crate) const SEARCH: &[Set] = &[calls::TALK, calls::DIAL, calls::SEARCH];

/// While the device is built.
pub(crate) const FIND: &[Set] = &[calls::TALK, calls::DIAL];

/// How long a back end may take to come when the machine starts: other programs are on their way as well.
const AT_BOOT: Duration = Duration::from_secs(60);

/// The same for a device that is added to a machine at work, which cannot be asked anything meanwhile.
const RUNNING: Duration = Duration::from_secs(2);

/// The same for one that is to connect to us: it looks for us only now and then.
const COMING: Duration = Duration::from_secs(10);

/// Where a device's connection waits while the machine is made anew; it ends with the machine or the device.
pub(crate) fn parked(host: &Host<'_>) -> Parked {
    let made = || Ok::<_, std::convert::Infallible>(Parked::default());
    let Ok(parked) = host.kept.keep(host.id, made);
    parked
}

/// Finds the back end of a device.
///
/// # Errors
/// Nobody answers at its socket, or nobody that can be worked with.
pub(crate) fn find(wish: Wish, host: &Host<'_>) -> Result<Remote, Refusal> {
    let place = wish.way.to_string();
    let patience = match (host.facts.running, &wish.way) {
        // It is there when it is started, or will not be.
        (_, Way::Start(_)) => Duration::ZERO,
        (false, Way::Connect(_)) => AT_BOOT,
        // As the contract has it: until somebody comes or the program is told to end.
        (false, Way::Accept(_)) => Duration::MAX,
        (true, Way::Connect(_)) => RUNNING,
        (true, Way::Accept(_)) => COMING,
    };
    Remote::find(wish, patience).map_err(|e| {
        match e {
            BackError::Connect { .. } | BackError::NoSocket(_) => {
                Refusal::new(fault(&e), "no vhost-user back end")
            }
            BackError::Program(_) => Refusal::new(fault(&e), format!("{place} does not serve it")),
            _ => Refusal::new(fault(&e), format!("vhost-user back end at {place}")),
        }
        .because(e)
    })
}

/// Who is at fault.
fn fault(e: &BackError) -> Kind {
    match e {
        BackError::NoSocket(_) | BackError::Lacks(_) | BackError::Queues { .. } => Kind::Invalid,
        BackError::Connect { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Kind::Invalid,
        _ => Kind::Host,
    }
}
