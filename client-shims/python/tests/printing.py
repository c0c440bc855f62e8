"""Every way we know to print a value in Python, to one text each."""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import gc
import inspect
import io
import json
import logging
import os
import pdb
import pickle
import pprint
import reprlib
import string
import sys
import traceback
import unittest
import warnings
from typing import Any, Callable

import keyhatch

LIBRARY = os.path.dirname(keyhatch.__file__)


@dataclasses.dataclass
class Config:
    key: keyhatch.Secret


class Plain:
    def __init__(self, secret: keyhatch.Secret) -> None:
        self.secret = secret


def every_way(secret: keyhatch.Secret) -> list[str]:
    return [said(way, secret) for way in WAYS]


def said(way: Callable[[keyhatch.Secret], object], secret: keyhatch.Secret) -> str:
    """What a way prints, or with which error it refuses."""
    try:
        done = way(secret)
    except BaseException:
        return traceback.format_exc() + logged_error()
    return done if isinstance(done, str) else repr(done)


def logged_error() -> str:
    text = io.StringIO()
    found = traceback.TracebackException(*sys.exc_info(), capture_locals=True)
    text.writelines(found.format())
    return text.getvalue()


def printed(secret: keyhatch.Secret) -> str:
    text = io.StringIO()
    print(secret, [secret], {"key": secret}, file=text)
    return text.getvalue()


def logged(*args: Any) -> str:
    text = io.StringIO()
    logger = logging.Logger("printing")
    logger.addHandler(logging.StreamHandler(text))
    logger.error(*args)
    return text.getvalue()


def logged_exception(secret: keyhatch.Secret) -> str:
    text = io.StringIO()
    logger = logging.Logger("printing")
    logger.addHandler(logging.StreamHandler(text))
    try:
        raise ValueError(secret)
    except ValueError:
        logger.exception("with %r", secret, extra={"secret": secret})
    return text.getvalue()


def log_record(secret: keyhatch.Secret) -> str:
    return repr(vars(logging.makeLogRecord({"msg": "%s", "args": (secret,), "secret": secret})))


def locals_of_a_failed_reveal(secret: keyhatch.Secret) -> str:
    try:
        keyhatch.Secret(secret.name, secret.version, b"\xff" + secret.reveal_bytes()).reveal()
    except keyhatch.NotText as error:
        return chain(error)
    raise AssertionError


def locals_of_a_missing_field(secret: keyhatch.Secret) -> str:
    held = keyhatch.Secret(secret.name, secret.version, b'{"a":"' + secret.reveal_bytes() + b'",}')
    try:
        held.field("b")
    except keyhatch.NoField as error:
        return chain(error)
    raise AssertionError


def chain(error: BaseException | None) -> str:
    """An error with all that led to it, the locals of each frame of the library, and what its attributes hold."""
    text = ""
    while error is not None:
        text += repr(error) + repr(vars(error)) + "".join(traceback.format_exception_only(type(error), error))
        frame = error.__traceback__
        while frame is not None:
            if frame.tb_frame.f_code.co_filename.startswith(LIBRARY):
                text += repr(frame.tb_frame.f_locals)
            frame = frame.tb_next
        error = error.__cause__ or error.__context__
    return text


def debugger(secret: keyhatch.Secret) -> str:
    commands = io.StringIO("p secret\npp vars(holder)\nargs\np dir(secret)\nc\n")
    text = io.StringIO()
    debug = pdb.Pdb(stdin=commands, stdout=text, nosigint=True, readrc=False)
    debug.use_rawinput = False
    debug.prompt = ""
    holder = Plain(secret)
    debug.runcall(lambda secret, holder: None, secret, holder)
    return text.getvalue()


def attributes(secret: keyhatch.Secret) -> str:
    return repr([(name, getattr(secret, name, None)) for name in dir(secret)])


def slots(secret: keyhatch.Secret) -> str:
    return json.dumps(
        secret, default=lambda it: {name: repr(getattr(it, name)) for name in it.__slots__ if name[1] != "_"}
    )


def closure(secret: keyhatch.Secret) -> str:
    return repr([getattr(getattr(secret, name, None), "__closure__", None) for name in secret.__slots__])


def warned(secret: keyhatch.Secret) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(f"{secret}", stacklevel=1)
    return str(caught[0].message)


def asserted(secret: keyhatch.Secret) -> str:
    try:
        unittest.TestCase().assertEqual([secret], ["other"])
    except AssertionError as error:
        return str(error)
    raise AssertionError


def rows(secret: keyhatch.Secret) -> str:
    text = io.StringIO()
    csv.writer(text).writerow([secret, "x"])
    return text.getvalue()


def rich(secret: keyhatch.Secret) -> str:
    text = io.StringIO()
    with contextlib.suppress(ImportError):
        import rich as rich_
        from rich.console import Console
        from rich.traceback import Traceback

        console = Console(file=text, width=400)
        console.print(secret, [secret], Config(secret))
        rich_.inspect(secret, console=console, all=True)
        try:
            json.dumps(secret)
        except TypeError:
            console.print(Traceback(show_locals=True))
    return text.getvalue()


WAYS: list[Callable[[keyhatch.Secret], object]] = [
    repr,
    str,
    ascii,
    format,
    printed,
    lambda secret: f"{secret} {secret!r} {secret!s:>90} {secret!a}",
    lambda secret: f"{secret:<90}|{secret:^90}",
    lambda secret: "{0} {0!r} {key}".format(secret, key=secret),
    lambda secret: "%s %r %a" % (secret, secret, secret),
    lambda secret: string.Template("$key").substitute(key=secret),
    lambda secret: logged("%s %r", secret, secret),
    lambda secret: logged(secret),
    logged_exception,
    log_record,
    json.dumps,
    lambda secret: json.dumps({"key": secret}, default=str),
    lambda secret: json.dumps({"key": secret}, default=repr),
    lambda secret: json.dumps(secret, default=vars),
    lambda secret: json.dumps(Plain(secret), default=lambda it: it.__dict__),
    slots,
    pickle.dumps,
    lambda secret: pickle.dumps([secret], protocol=0),
    lambda secret: copy.copy(secret),
    lambda secret: copy.deepcopy({"key": secret}),
    lambda secret: secret.__reduce_ex__(2),
    lambda secret: Config(secret),
    lambda secret: dataclasses.asdict(Config(secret)),
    lambda secret: dataclasses.astuple(Config(secret)),
    lambda secret: vars(secret),
    lambda secret: vars(Plain(secret)),
    lambda secret: secret.__dict__,
    attributes,
    closure,
    lambda secret: list(secret),  # type: ignore[call-overload]
    lambda secret: bytes(secret),  # type: ignore[call-overload]
    lambda secret: "".join([secret]),  # type: ignore[list-item]
    lambda secret: "Bearer " + secret,  # type: ignore[operator]
    lambda secret: ValueError(secret),
    lambda secret: str(KeyError(secret)),
    lambda secret: {secret: 1},
    lambda secret: pprint.pformat({"deep": [secret, Config(secret)]}, width=10),
    reprlib.repr,
    lambda secret: inspect.getmembers(secret),
    lambda secret: repr(gc.get_referents(secret)),
    lambda secret: inspect.signature(lambda key=secret: key),
    lambda secret: keyhatch.Batch({"a": secret}),
    locals_of_a_failed_reveal,
    locals_of_a_missing_field,
    debugger,
    warned,
    asserted,
    rows,
    rich,
]
