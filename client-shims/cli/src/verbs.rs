//! What each verb does.

use std::io::Write;
use std::time::Duration;

use keyhatch::blocking::Client;
use keyhatch::{Change, Error, UsableRoute, Wanted};
use keyhatch_protocol::ListReply;
use serde::Serialize;

use crate::failure::Failure;
use crate::options::{Get, List, Options, Rotate, Verb, Watch, Whoami};
use crate::output::{line, unbuffered, visible};
use crate::{bridge, doctor, generate, mcp, run};

/// Does what was asked on the command line.
pub fn run(options: Options) -> Result<(), Failure> {
    let client = || options.socket.as_ref().map_or_else(Client::new, Client::at);
    match options.verb {
        Verb::Get(get) => value(&client(), get),
        Verb::List(list) => names(&client(), &list),
        Verb::Whoami(whoami) => myself(&client(), &whoami),
        Verb::Watch(watch) => changes(&client(), &watch),
        Verb::Rotate(args) => rotate(&client(), &args),
        Verb::Run(args) => run::run(&client(), &args).and_then(passed_on),
        // It says how things are now.
        Verb::Doctor(args) => {
            doctor::doctor(&client().patience(Duration::ZERO), &args).and_then(passed_on)
        }
        Verb::Bridge(args) => bridge::bridge(&client(), &args).and_then(passed_on),
        Verb::Mcp => mcp::mcp(
            options
                .socket
                .as_ref()
                .map_or_else(keyhatch::Client::new, keyhatch::Client::at),
        ),
        Verb::Completions { shell } => generate::completions(shell),
        Verb::Man { dir } => generate::man(dir.as_deref()),
    }
}

/// The exit code of a command that was run, or of what was found.
fn passed_on(code: u8) -> Result<(), Failure> {
    match code {
        0 => Ok(()),
        code => Err(Failure::Code(code)),
    }
}

fn value(client: &Client, get: Get) -> Result<(), Failure> {
    let failed = |error| Failure::Client(format!("get {}", get.name), error);
    let mut wanted = Wanted::parse(&get.name).map_err(failed)?;
    if let Some(field) = get.field {
        wanted = wanted.field(field);
    }
    if get.previous {
        wanted = wanted.previous();
    }
    let secret = if get.json {
        client.fetch_json(&wanted)
    } else {
        client.fetch(&wanted)
    };
    let secret = secret.map_err(failed)?;
    let mut out = unbuffered().map_err(Failure::Output)?;
    // A value that nobody took is a failure, unlike the end of a list.
    out.write_all(secret.reveal()).map_err(Failure::Output)?;
    if get.json {
        out.write_all(b"\n").map_err(Failure::Output)?;
    }
    Ok(())
}

fn names(client: &Client, list: &List) -> Result<(), Failure> {
    let secrets = client.list(&list.prefix).map_err(doing("list"))?;
    if list.json {
        return json(&ListReply {
            secrets,
            next: None,
        });
    }
    for listed in secrets {
        line(listed.name.as_str())?;
    }
    Ok(())
}

fn myself(client: &Client, whoami: &Whoami) -> Result<(), Failure> {
    let me = client.whoami().map_err(doing("whoami"))?;
    if whoami.json {
        return json(&me);
    }
    let number = |id: Option<u32>| id.map_or("-".into(), |id| id.to_string());
    let groups: Vec<_> = me.groups.iter().map(u32::to_string).collect();
    for (label, text) in [
        (
            "bot",
            me.bot
                .unwrap_or_else(|| "none: no bot of the policy matches".into()),
        ),
        ("roles", me.roles.join(" ")),
        ("pid", me.pid.to_string()),
        ("uid", number(me.uid)),
        ("gid", number(me.gid)),
        ("groups", groups.join(" ")),
        ("exe", me.exe.unwrap_or_else(|| "-".into())),
        ("unit", me.unit.unwrap_or_else(|| "-".into())),
        ("user unit", me.user_unit.unwrap_or_else(|| "-".into())),
    ] {
        line(format!("{label:<10} {}", visible(&text)).trim_end())?;
    }
    for grant in me.grants {
        line(&format!("{:<10} {}", "grant", visible(&grant.to_string())))?;
    }
    for UsableRoute { name, upstream } in me.routes {
        line(&format!("{:<10} {name} {}", "route", visible(&upstream)))?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Line<'a> {
    event: &'a str,
    name: &'a str,
    version: Option<&'a str>,
}

fn changes(client: &Client, watch: &Watch) -> Result<(), Failure> {
    let failed = doing("watch");
    let names: Vec<_> = watch.names.iter().map(String::as_str).collect();
    for change in client.watch(&names).map_err(&failed)? {
        let Change {
            kind,
            name,
            version,
        } = change.map_err(&failed)?;
        let told = Line {
            event: kind.as_str(),
            name: name.as_str(),
            version: version.as_deref(),
        };
        if watch.json {
            json(&told)?;
        } else {
            let version = told.version.unwrap_or("-");
            line(&format!("{} {name} {}", told.event, visible(version)))?;
        }
    }
    Ok(())
}

fn rotate(client: &Client, args: &Rotate) -> Result<(), Failure> {
    let failed = |error| Failure::Client(format!("rotate {}", args.name), error);
    let begun = client.rotate(&args.name).map_err(failed)?;
    if args.json {
        return json(&begun);
    }
    let version = begun.version.map_or(String::new(), |version| {
        format!(", version {}", visible(&version))
    });
    Ok(line(&format!(
        "the rotation of {} has begun{version}",
        begun.name
    ))?)
}

fn doing(what: &str) -> impl Fn(Error) -> Failure {
    move |error| Failure::Client(what.into(), error)
}

fn json(data: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(data).map_err(std::io::Error::from)?;
    Ok(line(&text)?)
}
