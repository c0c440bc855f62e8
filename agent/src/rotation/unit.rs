//! Telling the unit that uses a secret of a new version: a job of systemd's, asked for on the system bus.
//!
//! Whether the daemon's user may is polkit's to say, unit by unit.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use zbus::connection::Builder;
use zbus::export::futures_core::Stream;
use zbus::message::Type;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, MatchRule, Message, MessageStream};

use crate::config::{Job, OnRotated};

const BUS: &str = "/run/dbus/system_bus_socket";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// How long systemd may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// How long a job may take, as of a unit that starts slowly.
const PATIENCE: Duration = Duration::from_secs(600);

/// The pauses before it is tried again.
const PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];

/// Jobs of others that end meanwhile.
const QUEUE: usize = 1024;

/// Why a unit was not told.
#[derive(Debug, thiserror::Error)]
enum UnitError {
    #[error(
        "{BUS} cannot be reached ({0}): see that dbus runs, and that keyhatch.service has the drop-in on-rotated.conf"
    )]
    Bus(std::io::Error),
    #[error(
        "systemd does not let the daemon's user do it: name the unit in polkit's rules, as on-rotated.rules does"
    )]
    Denied,
    #[error("systemd says: {0}")]
    Refused(String),
    #[error("the bus says: {0}")]
    Protocol(zbus::Error),
    #[error("its job ended as {0:?}: see `systemctl status {1}`")]
    Job(String, String),
    #[error("systemd did not answer, or its job did not end within {} s", PATIENCE.as_secs())]
    Timeout,
}

impl UnitError {
    /// Whether it may be otherwise in a moment.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Bus(_) | Self::Protocol(_))
    }
}

impl From<zbus::Error> for UnitError {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, why, _) => match name.as_str() {
                "org.freedesktop.DBus.Error.AccessDenied"
                | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => Self::Denied,
                name => Self::Refused(why.unwrap_or_else(|| name.to_owned())),
            },
            error => Self::Protocol(error),
        }
    }
}

/// Whether the bus is there to be asked.
///
/// # Errors
/// Why it is not, for operators.
pub fn sees_bus() -> Result<(), String> {
    std::fs::metadata(BUS)
        .map(drop)
        .map_err(|why| UnitError::Bus(why).to_string())
}

/// Has systemd begin a job for the unit, which is tried again where the bus does not let it, and waits until it is done.
/// A job that was made is not asked for once more: a unit that is slow or fails would be stopped and started again.
///
/// # Errors
/// Why it is not told, for operators.
pub async fn tell(on: &OnRotated) -> Result<(), String> {
    let mut pauses = PAUSES.iter();
    let told = loop {
        match timeout(ANSWER, Asked::of(on)).await {
            Ok(Ok(asked)) => break timeout(PATIENCE, asked.ends(on)).await,
            Ok(Err(why)) => match pauses.next().filter(|_| why.may_pass()) {
                Some(pause) => sleep(*pause).await,
                None => break Ok(Err(why)),
            },
            Err(elapsed) => break Err(elapsed),
        }
    };
    told.unwrap_or(Err(UnitError::Timeout)).map_err(|why| {
        let (unit, job) = (&on.unit, on.job.as_str());
        tracing::warn!(%unit, %job, %why, "a unit is not told of the new version of its secret");
        format!("{job} of {unit}: {why}")
    })
}

/// A job that systemd was asked for.
struct Asked {
    /// Kept, since the bus ends with it.
    _bus: Connection,
    signals: MessageStream,
    reply: Message,
}

impl Asked {
    async fn of(on: &OnRotated) -> Result<Self, UnitError> {
        let stream = UnixStream::connect(BUS).await.map_err(UnitError::Bus)?;
        let bus = Builder::unix_stream(stream).build().await?;
        // Before the job begins, which may end at once.
        let signals = job_ends(&bus).await?;
        let method = match on.job {
            Job::Reload => "ReloadUnit",
            Job::TryRestart => "TryRestartUnit",
        };
        let arguments = (on.unit.as_str(), "replace");
        let reply = bus
            .call_method(Some(SYSTEMD), PATH, Some(MANAGER), method, &arguments)
            .await?;
        Ok(Self {
            _bus: bus,
            signals,
            reply,
        })
    }

    async fn ends(mut self, on: &OnRotated) -> Result<(), UnitError> {
        let job: OwnedObjectPath = self.reply.body().deserialize()?;
        while let Some(signal) = poll_fn(|cx| Pin::new(&mut self.signals).poll_next(cx)).await {
            let signal = signal?;
            // Anyone may send a signal; systemd is who has answered.
            if signal.header().sender() != self.reply.header().sender() {
                continue;
            }
            let body = signal.body();
            let (_, ended, _, result): (u32, OwnedObjectPath, &str, &str) = body.deserialize()?;
            if ended == job {
                return match result {
                    "done" => Ok(()),
                    // A unit that does not run reads the new value when it starts.
                    "invalid" if on.job == Job::Reload => Ok(()),
                    result => Err(UnitError::Job(result.to_owned(), on.unit.clone())),
                };
            }
        }
        Err(UnitError::Bus(std::io::ErrorKind::UnexpectedEof.into()))
    }
}

/// The ends of systemd's jobs.
async fn job_ends(bus: &Connection) -> Result<MessageStream, zbus::Error> {
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(SYSTEMD)?
        .path(PATH)?
        .interface(MANAGER)?
        .member("JobRemoved")?
        .build();
    let signals = MessageStream::for_match_rule(rule, bus, Some(QUEUE)).await?;
    bus.call_method(Some(SYSTEMD), PATH, Some(MANAGER), "Subscribe", &())
        .await?;
    Ok(signals)
}
