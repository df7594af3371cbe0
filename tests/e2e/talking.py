"""What a worker made by hand says: its hello, a failure, and what is refused."""

import pytest
from harness import Refused

FAILURE = {"kind": "transient", "category": "external", "signature": "busy", "message": "busy"}


def hello_of(puppet):
    return {"protocol": 1, "worker": puppet.name, "token": puppet.token, "client": "puppet/1"}


def refusal(line, method, **params):
    with pytest.raises(Refused) as caught:
        line.call(method, **params)
    return caught.value
