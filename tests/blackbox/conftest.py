"""Marks for what a machine may lack: each skip says loudly what was not shown."""

import os

import pytest

from harness import Agent

ROOT_ONLY = "needs root: other uids, namespaces and cgroups are not shown without it"


def pytest_collection_modifyitems(items):
    if os.geteuid() != 0:
        for item in items:
            if "anyone" not in item.keywords:
                item.add_marker(pytest.mark.skip(reason=ROOT_ONLY))


def pytest_configure(config):
    config.addinivalue_line("markers", "anyone: runs without root, too")


@pytest.fixture
def agent():
    with Agent() as agent:
        yield agent

