from __future__ import annotations

import json
import string
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scraper_supervisor.core.config.parser import parse
from scraper_supervisor.core.formats.redaction import Redactor, secrets_of
from scraper_worker import classify

SECRET = "correct horse"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:sesame@h/x", "https://u:***@h/x"),
        ("redis://:sesame@h:6379/0", "redis://:***@h:6379/0"),
        ("https://u:p@ss:w@h/x", "https://u:***@h/x"),
        ("https://u:sés%40me@h?x=1", "https://u:***@h?x=1"),
        ("from http://a:b@c to http://d:e@f.", "from http://a:***@c to http://d:***@f."),
        ("https://u@h/x", "https://u@h/x"),
        ("https://u:@h/x", "https://u:@h/x"),
        ("https://h:8080/a@b", "https://h:8080/a@b"),
        ("http://[::1]:8080/a@b", "http://[::1]:8080/a@b"),
        ("mail a@b about http://h", "mail a@b about http://h"),
        (f"it says {SECRET}!", "it says ***!"),
        ("https://u:***@h/x", "https://u:***@h/x"),
    ],
)
def test_passwords_and_secrets_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    redactor = Redactor([SECRET])
    assert redactor.text(text) == shown
    assert redactor.suspects(text.encode()) or text == shown
    assert redactor.text(shown) == shown


def test_a_key_that_is_changed_can_be_told_apart() -> None:
    key = "https://u:sesame@h/x"
    mark = sha256(key.encode()).hexdigest()[:8]
    redactor = Redactor()
    assert redactor.key(key) == f"https://u:***@h/x#{mark}"
    assert redactor.key("https://h/x") == "https://h/x"
    assert redactor.key(redactor.key(key)) == redactor.key(key)
    found = redactor.value({"key": key, "keys": [key, "x"], "url": key, "deep": [{"charged": key}]})
    shown = f"https://u:***@h/x#{mark}"
    assert found == {"key": shown, "keys": [shown, "x"], "url": "https://u:***@h/x", "deep": [{"charged": shown}]}


def test_a_secret_is_hidden_in_signatures_too_which_leave_numbers_out() -> None:
    redactor = Redactor(["s3cr3t-t0ken", "4711-4712-4713"])
    signature = classify(RuntimeError("no page with s3cr3t-t0ken on attempt 3")).signature
    assert redactor.text(signature) == "RuntimeError: no page with *** on attempt N"
    assert redactor.suspects(signature.encode())
    assert redactor.text("N-N-N stays: it says nothing") == "N-N-N stays: it says nothing"


def test_which_values_of_the_environment_are_secret() -> None:
    group = {"command": ["x"], "env": {"A_TOKEN": "12345678", "SHORT": "1234567", "A_URL": "http://h/long"}}
    files = {"env_file": "s.env", "env": {"HOME_DIR": "/home/somebody"}}
    document: Any = {"workers": {"a": group, "b": {"command": ["x"], **files}}}
    settings = parse(document, "/base", lambda path: f"FROM={path} too\nSOME_PATH=/usr/local/bin\n")
    assert secrets_of(settings) == {"12345678", "/base/s.env too"}


def test_the_longer_of_two_secrets_is_hidden_whole() -> None:
    assert Redactor(["12345678", "123456789"]).text("a 123456789 b 12345678") == "a *** b ***"


def test_what_is_no_text_is_left_alone_though_it_looks_like_a_secret() -> None:
    found = json.loads(Redactor(["12345678"]).json(b'{"12345678":12345678,"text":["12345678"],"key":"12345678"}'))
    assert found == {"***": 12345678, "text": ["***"], "key": f"***#{sha256(b'12345678').hexdigest()[:8]}"}


def test_a_line_of_the_log_is_hidden_in_whatever_its_form() -> None:
    redactor = Redactor(['say "friend"\\'])
    line = json.dumps({"time": "t", "event": 'x say "friend"\\', "level": "info"}).encode() + b"\n"
    assert redactor.suspects(line)
    assert json.loads(redactor.log_line(line)) == {"event": "x ***", "time": "t", "level": "info"}
    for written in ('say "friend"\\', repr('say "friend"\\')[1:-1]):
        assert redactor.log_line(f"12:00 a={written} \x80\n".encode()) == "12:00 a=*** \x80\n".encode()
    assert Redactor().log_line(b"\xff http://a:b@c\n") == b"\xff http://a:***@c\n"
    assert Redactor().log_line(b"[1]\n") == b"[1]\n"


texts = st.text(st.sampled_from(string.ascii_letters + ':/@?# "\\\n\té\u00a0\u2028'), max_size=30)


@given(st.lists(texts.map(lambda text: text * 8).filter(bool), max_size=3), texts, texts, texts)
def test_the_look_at_the_bytes_misses_nothing(secrets: list[str], a: str, b: str, c: str) -> None:
    redactor = Redactor(secret for secret in secrets if len(secret) >= 8)
    data = {"text": f"{a}://{b}:{c}@h", "more": [a, *secrets]}
    encoded = msgspec.json.encode(data)
    assert redactor.suspects(encoded) or redactor.value(data) == data


def test_what_is_in_workers_hands_is_shown_with_its_passwords_hidden() -> None:
    key = "https://u:sesame@h/x"
    doing = [{"key": key, "claim": 1, "target": "h", "message": f"reads {key}", "done": 1}]
    status = {"workers": [{"name": "correct horse-0", "doing": doing, "idle_reason": f"waits for {key}"}]}
    (shown,) = Redactor([SECRET]).texts(status)["workers"]
    assert shown["name"] == "correct horse-0"  # others go by it
    (one,) = shown["doing"]
    assert one["key"] == f"https://u:***@h/x#{sha256(key.encode()).hexdigest()[:8]}"
    assert one["message"] == "reads https://u:***@h/x"
    assert (one["claim"], one["done"], one["target"]) == (1, 1, "h")
    assert shown["idle_reason"] == "waits for https://u:***@h/x"
