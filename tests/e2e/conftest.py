"""Daemons for the end-to-end tests; whatever a test does, nothing of them is left behind it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # these tests share modules, and importlib mode adds no folder itself

from harness import HERE, Daemon, Puppet

PUPPET = [sys.executable, "-S", "-E", str(HERE / "puppet.py")]
GROUPS = 20  # of one puppet each, which no two tests of a module share


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


@pytest.fixture
def line_of(puppet_of):
    """A function that gives a connection of the puppet p-0 that said hello."""
    puppets = []

    def meet(daemon):
        puppets.append(puppet_of(daemon, "p-0"))
        return puppets[-1].hello()[0]

    yield meet
    for puppet in puppets:
        puppet.close()


@pytest.fixture(scope="module")
def puppet_daemon(shared_daemons):
    """A daemon with a puppet for every test of a module."""
    group = {"command": PUPPET, "retry": "quick", "heartbeat_timeout": "60s", "stop_timeout": "10s"}
    config = {
        "workers": {f"g{number}": group for number in range(GROUPS)},
        "retry": {"quick": {"base_delay": 0.3, "jitter": "none", "max_attempts": 3}},
        "abort": {"enabled": False},
    }
    return shared_daemons(config).start()


@pytest.fixture(scope="module")
def free_names():
    return [f"g{number}-0" for number in range(GROUPS)]


@pytest.fixture
def puppet(puppet_daemon, free_names):
    """A worker that nobody used before."""
    puppet = Puppet(puppet_daemon, free_names.pop()).wait()
    yield puppet
    puppet.close()


@pytest.fixture
def line(puppet):
    """A connection of a fresh worker that said hello."""
    return puppet.hello()[0]
