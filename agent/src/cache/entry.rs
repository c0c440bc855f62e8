//! A secret in memory: its current version and the one before.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use hyper::header::HeaderValue;
use keyhatch_protocol::Name;

use super::lease::{Lease, Permit};
use super::render::{self, About};
use super::{LoadError, field};
use crate::sys::arena::{Arena, Block};

/// A secret as it is served.
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// The source it came from.
    pub source: Arc<str>,
    /// The current version.
    pub current: Arc<Version>,
    /// The version before, where one is kept.
    pub previous: Option<Arc<Version>>,
    freshness: AtomicU8,
}

/// Whether the source still stands behind a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It does.
    Fresh,
    /// The source is in trouble; the last good value is served and marked.
    Stale,
    /// The source has been in trouble for too long: nothing is served.
    Withheld,
}

impl Entry {
    /// A fresh entry.
    #[must_use]
    pub fn new(
        name: Name,
        source: Arc<str>,
        current: Arc<Version>,
        previous: Option<Arc<Version>>,
    ) -> Self {
        Self {
            name,
            source,
            current,
            previous,
            freshness: AtomicU8::new(Freshness::Fresh as u8),
        }
    }

    /// Whether the source still stands behind the value.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        match self.freshness.load(Ordering::Acquire) {
            0 => Freshness::Fresh,
            1 => Freshness::Stale,
            _ => Freshness::Withheld,
        }
    }

    /// Says how the source stands behind the value from now on.
    pub fn set_freshness(&self, freshness: Freshness) {
        self.freshness.store(freshness as u8, Ordering::Release);
    }
}

/// One version of a secret, with its replies ready.
pub struct Version {
    id: Arc<str>,
    /// The version as an entity tag (RFC 9110 section 8.8.3).
    etag: HeaderValue,
    /// The version as a header value.
    header: HeaderValue,
    updated_at: Box<str>,
    /// The same as the time since 1970.
    set_at: Duration,
    json: Arc<Block>,
    /// The JSON string of the value inside the reply.
    string: Range<usize>,
    kind: Kind,
    raw: Raw,
    framed: [OnceLock<Framed>; APIS],
}

/// How many other APIs have a reply kept.
const APIS: usize = 2;

/// Which reply of another API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Which API, from 0.
    pub api: usize,
    /// What its reply depends on besides the version.
    pub variant: usize,
}

/// The value in the reply of another API.
struct Framed {
    shape: Shape,
    block: Arc<Block>,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A JSON object: it has fields.
    Object,
    /// Any other text.
    Text,
    /// Bytes that are not UTF-8.
    Binary,
}

impl Kind {
    fn of(value: &[u8], is_text: bool) -> Self {
        if !is_text {
            Self::Binary
        } else if field::is_object(value) {
            Self::Object
        } else {
            Self::Text
        }
    }
}

/// Where the exact bytes of the value are.
enum Raw {
    /// Inside the JSON reply.
    Inside(Range<usize>),
    /// In a block of their own, since JSON had to escape them.
    Own(Arc<Block>),
}

/// The shape of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The JSON document.
    Json,
    /// The exact bytes.
    Raw,
}

impl Version {
    /// Renders a value that stands in secret memory.
    pub fn load(arena: &Arc<Arena>, about: &About<'_>, value: Block) -> Result<Self, LoadError> {
        let rendered = render::reply(arena, about, &value)?;
        let kind = Kind::of(&value, rendered.is_text);
        let raw = match rendered.raw {
            Some(range) => Raw::Inside(range),
            None => Raw::Own(Arc::new(value)),
        };
        let header = |text: &str| {
            HeaderValue::from_str(text).map_err(|_| LoadError::Version(about.name.into()))
        };
        Ok(Self {
            id: about.version.into(),
            etag: header(&format!("\"{}\"", about.version))?,
            header: header(about.version)?,
            updated_at: about.updated_at.into(),
            set_at: since_1970(about.updated_at),
            json: Arc::new(rendered.json),
            string: rendered.string,
            kind,
            raw,
            framed: Default::default(),
        })
    }

    /// The opaque version string.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The version as an entity tag.
    #[must_use]
    pub fn etag(&self) -> &HeaderValue {
        &self.etag
    }

    /// The version as a header value.
    #[must_use]
    pub fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// Lends the value, in the shape asked for, to the peer whose permit this is.
    #[must_use]
    pub fn lease(&self, _permit: &Permit, form: Form) -> Lease {
        match (form, &self.raw) {
            (Form::Json, _) => Lease::whole(&self.json),
            (Form::Raw, Raw::Own(block)) => Lease::whole(block),
            (Form::Raw, Raw::Inside(range)) => Lease::part(&self.json, range.clone()),
        }
    }

    /// What the value is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The value as a JSON string, quotes included: its text, or base64 where it is [`Kind::Binary`].
    #[must_use]
    pub fn lease_string(&self, _permit: &Permit) -> Lease {
        Lease::part(&self.json, self.string.clone())
    }

    /// The value as a JSON string between two texts, rendered once: of each API the first variant that is asked for is kept.
    /// `None` for any other, and where secret memory has no room for it.
    #[must_use]
    pub fn lease_framed(
        &self,
        _permit: &Permit,
        arena: &Arc<Arena>,
        shape: Shape,
        frame: impl FnOnce() -> (String, &'static str),
    ) -> Option<Lease> {
        let place = self.framed.get(shape.api)?;
        let framed = if let Some(framed) = place.get() {
            framed
        } else {
            let (before, after) = frame();
            let string = &self.json[self.string.clone()];
            let parts = [before.as_bytes(), string, after.as_bytes()];
            let block = Arc::new(render::joined(arena, parts).ok()?);
            place.get_or_init(|| Framed { shape, block })
        };
        (framed.shape == shape).then(|| Lease::whole(&framed.block))
    }

    /// The JSON document up to the word that says whether the value is stale.
    #[must_use]
    pub fn lease_but_staleness(&self, _permit: &Permit) -> Lease {
        Lease::part(&self.json, 0..self.json.len() - render::FRESH.len())
    }

    /// Whether the value is a JSON object with this field.
    #[must_use]
    pub fn has_field(&self, name: &str) -> bool {
        self.kind == Kind::Object && field::with(self.raw(), name, |_| ()).is_some()
    }

    /// One field of the value, rendered for this request alone.
    ///
    /// `Ok(None)` where the value is not a JSON object or has no such field.
    pub fn lease_field(
        &self,
        _permit: &Permit,
        arena: &Arc<Arena>,
        entry: &Entry,
        name: &str,
        form: Form,
    ) -> Result<Option<Lease>, LoadError> {
        let about = About {
            name: entry.name.as_str(),
            version: &self.id,
            updated_at: &self.updated_at,
            source: &entry.source,
            stale: entry.freshness() == Freshness::Stale,
        };
        let rendered = field::with(self.raw(), name, |value| match form {
            Form::Json => render::reply(arena, &about, value).map(|rendered| rendered.json),
            Form::Raw => render::copy(arena, value),
        });
        Ok(rendered
            .transpose()?
            .map(|block| Lease::whole(&Arc::new(block))))
    }

    /// When the value was set, RFC 3339.
    #[must_use]
    pub fn updated_at(&self) -> &str {
        &self.updated_at
    }

    /// When the value was set, as the time since 1970; nothing where the source told no time.
    #[must_use]
    pub fn set_at(&self) -> Duration {
        self.set_at
    }

    /// The plaintext, for comparing and for sealing a copy; an answer takes a lease.
    pub(crate) fn plaintext(&self) -> &[u8] {
        self.raw()
    }

    fn raw(&self) -> &[u8] {
        match &self.raw {
            Raw::Inside(range) => &self.json[range.clone()],
            Raw::Own(block) => block,
        }
    }
}

fn since_1970(time: &str) -> Duration {
    let time = humantime::parse_rfc3339(time).unwrap_or(UNIX_EPOCH);
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
