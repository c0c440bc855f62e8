//! The values for one start of the child, read from the agent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;

use keyhatch::blocking::Client;
use keyhatch::{Error, Name, Secret, Wanted};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use zeroize::Zeroizing;

use super::wants::{Place, Want, Wants, refuse_collisions, variable_of};
use crate::child::Variable;
use crate::failure::Failure;

/// The versions of the secrets that a child was given.
pub type Versions = BTreeMap<Name, String>;

/// What a child is given.
pub struct Delivery {
    values: Vec<(String, Zeroizing<Vec<u8>>)>,
    /// Inherited by the child, so not closed on exec.
    files: Vec<(String, File)>,
    versions: Versions,
}

impl Delivery {
    pub fn read(client: &Client, wants: &Wants) -> Result<Self, Failure> {
        let mut delivery = Self {
            values: Vec::new(),
            files: Vec::new(),
            versions: Versions::new(),
        };
        let mut all: Vec<Want> = wants.given.clone();
        let found = find(client, wants)?;
        all.extend(found.iter().map(|(want, _)| want.clone()));
        refuse_collisions(&all)?;
        for want in &wants.given {
            let secret = client
                .fetch(&want.wanted)
                .map_err(|error| failed(want, error))?;
            delivery.add(want, &secret)?;
        }
        for (want, secret) in &found {
            delivery.add(want, secret)?;
        }
        Ok(delivery)
    }

    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    pub fn versions_mut(&mut self) -> &mut Versions {
        &mut self.versions
    }

    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.versions.keys()
    }

    /// The secrets that are other ones than in `before`, for a message.
    pub fn news(&self, before: &Self) -> String {
        let names: Vec<_> = self
            .versions
            .iter()
            .filter(|(name, version)| before.versions.get(*name) != Some(*version))
            .map(|(name, _)| name.as_str())
            .collect();
        names.join(", ")
    }

    pub fn variables(&self) -> Vec<Variable> {
        let values = self.values.iter().map(|(name, value)| Variable {
            name: name.into(),
            value: value.clone(),
        });
        let files = self
            .files
            .iter()
            .map(|(name, file)| Variable::plain(name, &format!("/dev/fd/{}", file.as_raw_fd())));
        values.chain(files).collect()
    }

    /// The child has it all now: nothing but the versions is kept.
    pub fn close(&mut self) {
        self.values.clear();
        self.files.clear();
    }

    fn add(&mut self, want: &Want, secret: &Secret) -> Result<(), Failure> {
        let variable = &want.variable;
        match want.place {
            Place::Variable if secret.reveal().contains(&0) => {
                return Err(Failure::failed(format!(
                    "run: the value of {} holds a NUL byte, which no variable can: use --file {variable}={0}",
                    secret.name()
                )));
            }
            Place::Variable => {
                let value = Zeroizing::new(secret.reveal().to_vec());
                self.values.push((variable.clone(), value));
            }
            Place::File => {
                let file = sealed(secret.reveal()).map_err(|cause| {
                    Failure::failed(format!("run: cannot make a file for {variable}: {cause}"))
                })?;
                self.files.push((variable.clone(), file));
            }
        }
        let name = secret.name().clone();
        self.versions.insert(name, secret.version().into());
        Ok(())
    }
}

fn failed(want: &Want, error: Error) -> Failure {
    Failure::Client(
        format!("run: {}={}", want.variable, want.wanted.name()),
        error,
    )
}

/// The readable secrets below each prefix. One that may be listed and not read is left out.
fn find(client: &Client, wants: &Wants) -> Result<Vec<(Want, Secret)>, Failure> {
    let mut found = Vec::new();
    for prefix in &wants.prefixes {
        let listed = client.list(prefix);
        let listed =
            listed.map_err(|error| Failure::Client(format!("run: --env-all {prefix:?}"), error))?;
        for listed in listed {
            let want = Want {
                variable: variable_of(&listed.name, prefix),
                wanted: Wanted::from(listed.name),
                place: Place::Variable,
            };
            match client.fetch(&want.wanted) {
                Ok(secret) => found.push((want, secret)),
                Err(Error::Denied(_) | Error::NotFound(_)) => {}
                Err(error) => return Err(failed(&want, error)),
            }
        }
    }
    Ok(found)
}

/// A file in memory that nobody can change any more, its own child included.
fn sealed(value: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("keyhatch", MFdFlags::MFD_ALLOW_SEALING)?);
    file.write_all(value)?;
    file.rewind()?;
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}
