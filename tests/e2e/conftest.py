"""Daemons for the end-to-end tests; whatever a test does, nothing of them is left behind it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # these tests share modules, and importlib mode adds no folder itself

from harness import HERE, Daemon, Puppet

PUPPET = [sys.executable, "-S", "-E", str(HERE / "puppet.py")]


def make_daemon(config, env=None):
    daemon = Daemon(config, env)
    daemon._env.update(PUPPETS=str(daemon.folder), E2E_FOLDER=str(daemon.folder))
    return daemon


@pytest.fixture
def daemons():
    """A function that makes daemons, ended after the test."""
    made = []

    def make(config, env=None):
        made.append(make_daemon(config, env))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture(scope="module")
def shared_daemons():
    """The same, ended after the module's last test."""
    made = []

    def make(config, env=None):
        made.append(make_daemon(config, env))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture
def puppet_of():
    """A function that gives the puppet of a worker's name, once its process is there."""
    return lambda daemon, name: Puppet(daemon, name).wait()


@pytest.fixture
def puppet_command():
    """The command of a group of puppets."""
    return PUPPET
