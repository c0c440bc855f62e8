"""Marks for what a machine may lack: each skip says loudly what was not shown."""

import os

import pytest

from harness import Agent, open_to_others

ROOT_ONLY = "needs root: other uids, namespaces and cgroups are not shown without it"


def pytest_collection_modifyitems(items):
    if os.geteuid() != 0:
        for item in items:
            if "anyone" not in item.keywords:
                item.add_marker(pytest.mark.skip(reason=ROOT_ONLY))


def pytest_configure(config):
    config.addinivalue_line("markers", "anyone: runs without root, too")


@pytest.fixture(scope="session", autouse=True)
def files_for_others(tmp_path_factory):
    open_to_others(tmp_path_factory.getbasetemp())


@pytest.fixture
def agent():
    with Agent() as agent:
        yield agent


# Upstreams: each is started once, when a test first asks for it, and is as new for every test.


@pytest.fixture(scope="session")
def one_bao():
    from upstreams import Bao

    with Bao() as bao:
        yield bao


@pytest.fixture
def bao(one_bao):
    one_bao.reset()
    return one_bao


@pytest.fixture(scope="session")
def one_moto():
    from upstreams import Moto

    with Moto() as moto:
        yield moto


@pytest.fixture
def moto(one_moto):
    one_moto.reset()
    return one_moto


@pytest.fixture(scope="session")
def postgres():
    from upstreams import Postgres

    with Postgres() as postgres:
        yield postgres


@pytest.fixture
def liar(bao):
    """Stands before the OpenBao and lies where it is told to."""
    from liar import Liar

    with Liar(bao) as liar:
        yield liar
