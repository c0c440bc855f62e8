//! Which variables the child gets, from the command line and the map file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use keyhatch::{Name, Wanted};

use crate::failure::Failure;
use crate::options::Run;

/// How a value reaches the child.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the variable itself.
    Variable,
    /// In a sealed file in memory, whose path is in the variable.
    File,
}

/// One variable.
#[derive(Clone)]
pub struct Want {
    pub variable: String,
    pub wanted: Wanted,
    pub place: Place,
}

/// All that was asked for.
pub struct Wants {
    pub given: Vec<Want>,
    /// One variable for each readable name that begins so.
    pub prefixes: Vec<String>,
}

impl Wants {
    pub fn gather(run: &Run) -> Result<Self, Failure> {
        let mut given = Vec::new();
        for (pairs, place) in [(&run.env, Place::Variable), (&run.file, Place::File)] {
            for pair in pairs {
                given.push(parse(pair, place).map_err(Failure::usage)?);
            }
        }
        if let Some(file) = &run.map {
            read_map(file, &mut given)?;
        }
        Ok(Self {
            given,
            prefixes: run.env_all.clone(),
        })
    }
}

/// `VAR=NAME` or `VAR=NAME#field`.
fn parse(pair: &str, place: Place) -> Result<Want, String> {
    let Some((variable, name)) = pair.split_once('=') else {
        return Err(format!("{pair:?} is not VAR=NAME"));
    };
    if !is_variable(variable) {
        return Err(format!(
            "{variable:?} is not a variable's name: use letters, digits and _, no digit first"
        ));
    }
    let wanted = Wanted::parse(name).map_err(|error| error.to_string())?;
    Ok(Want {
        variable: variable.into(),
        wanted,
        place,
    })
}

fn is_variable(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().all(fits)
        && text
            .bytes()
            .next()
            .is_some_and(|first| !first.is_ascii_digit())
}

fn read_map(file: &Path, given: &mut Vec<Want>) -> Result<(), Failure> {
    let shown = file.display();
    let text = fs::read_to_string(file)
        .map_err(|cause| Failure::configuration(format!("cannot read {shown}: {cause}")))?;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let want = parse(line, Place::Variable)
            .map_err(|why| Failure::configuration(format!("{shown}:{}: {why}", number + 1)))?;
        given.push(want);
    }
    Ok(())
}

/// The variable of a name that `--env-all PREFIX` found: what follows the prefix (the last segment, where nothing
/// does) in upper case, with `_` for all but letters and digits, and before a digit at the start.
pub fn variable_of(name: &Name, prefix: &str) -> String {
    let name = name.as_str();
    let rest = name.strip_prefix(prefix).unwrap_or(name);
    let rest = rest.trim_start_matches('/');
    let last = name.rsplit('/').next().unwrap_or(name);
    let rest = if rest.is_empty() { last } else { rest };
    let mut variable: String = rest
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect();
    if variable.starts_with(|c: char| c.is_ascii_digit()) {
        variable.insert(0, '_');
    }
    variable
}

/// A variable can have one value only.
pub fn refuse_collisions(wants: &[Want]) -> Result<(), Failure> {
    let mut seen: BTreeMap<&str, &Want> = BTreeMap::new();
    for want in wants {
        if let Some(first) = seen.insert(&want.variable, want) {
            return Err(Failure::usage(format!(
                "run: {} is wanted twice, for {} and for {}: give one of them another variable by --env",
                want.variable,
                first.wanted.name(),
                want.wanted.name()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_a_variable() {
        for (name, prefix, variable) in [
            ("app/api-key", "app/", "API_KEY"),
            ("app/api-key", "app", "API_KEY"),
            ("app/db/pass.word", "app/", "DB_PASS_WORD"),
            ("app/2fa", "app/", "_2FA"),
            ("app/key", "app/key", "KEY"),
            ("app/key", "", "APP_KEY"),
        ] {
            assert_eq!(variable_of(&Name::parse(name).unwrap(), prefix), variable);
        }
    }

    #[test]
    fn only_pairs_that_a_shell_could_export_are_taken() {
        for good in ["A=a", "_b1=a/b", "C=a#field"] {
            assert!(parse(good, Place::Variable).is_ok(), "{good}");
        }
        for bad in ["A", "=a", "1A=a", "A-B=a", "A=", "A=a//b", "A =a"] {
            assert!(parse(bad, Place::Variable).is_err(), "{bad}");
        }
    }
}
