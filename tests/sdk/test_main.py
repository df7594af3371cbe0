"""`python -P -m scraper_worker` as a process: exit codes, messages, signals, and running alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-P", "-m", "scraper_worker"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SCRAPER_WORKER_")}


def start(folder, *arguments, environment=ENVIRONMENT):
    command = [*COMMAND, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def scraper(tmp_path):
    def write(text, name="scraper.py"):
        (tmp_path / name).write_text(text)
        return tmp_path

    return write


@pytest.mark.slow
def test_alone_it_says_so_and_prints_results_and_a_summary(scraper):
    folder = scraper(
        "async def scrape(worker):\n"
        "    await worker.process(['a', 'b'], one, browser=False)\n"
        "async def one(item):\n"
        "    if item.key == 'b':\n"
        "        raise NameError('typo')\n"
        "    return {'n': 1}\n"
    )
    # The folder's own modules of these names must break neither the SDK nor the standard library.
    for name in ("json", "queue", "email", "retry"):
        scraper("raise RuntimeError('imported by mistake')", f"{name}.py")
    done = start(folder, "scraper:scrape")
    assert done.returncode == 0, done.stderr
    assert "no supervisor: running alone, in memory" in done.stderr
    assert "1 done, 1 failed, 0 left" in done.stderr
    (result,) = map(json.loads, done.stdout.splitlines())
    assert (result["key"], result["result"]) == ("a", {"n": 1})


@pytest.mark.slow
def test_the_scraper_s_own_logging_is_its_own(scraper):
    folder = scraper(
        "import logging, asyncio\n"
        "logging.basicConfig(level=logging.INFO, format='MINE %(levelname)s %(name)s %(message)s')\n"
        "async def scrape(worker):\n"
        "    logging.getLogger('shop').info('begun')\n"
        "    await worker.process(['a', 'x\\ny'], one, browser=False)\n"
        "async def one(item):\n"
        "    await item.offer(['x\\ny'])\n"
    )
    done = start(folder, "scraper:scrape")
    assert done.returncode == 0, done.stderr
    mine = [line for line in done.stderr.splitlines() if line.startswith("MINE")]
    assert mine == ["MINE INFO shop begun"]
    assert sum(line.startswith("scraper_worker: WARNING: ") for line in done.stderr.splitlines()) == 2  # the SDK's own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage"),
        (["scraper"], "is not MODULE:FUNCTION"),
        (["scraper:"], "is not MODULE:FUNCTION"),
        (["scraper:a", "b"], "usage"),
    ],
)
def test_wrong_usage_is_one_line_and_2(scraper, arguments, message):
    done = start(scraper("async def scrape(worker): pass\n"), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


PLAIN = "async def scrape(worker):\n    await worker.process(['a'], one{})\ndef one(item):\n    return item.key\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "entrypoint", "message"),
    [
        ("", "nothing:scrape", "no module 'nothing'"),
        ("", "scraper:nothing", "no function 'nothing'"),
        ("def scrape(worker): pass\n", "scraper:scrape", "scrape must be an async function"),
        (PLAIN.format(""), "scraper:scrape", "call process(…, browser=False)"),
        (PLAIN.format(", browser=False, concurrency=0"), "scraper:scrape", "concurrency is 1 or more"),
        (PLAIN.format(", browser=False, offer='never'"), "scraper:scrape", "offer is"),
    ],
)
def test_a_wrong_set_up_is_one_line_and_78(scraper, text, entrypoint, message):
    done = start(scraper(text), entrypoint)
    assert done.returncode == 78
    line = next(line for line in done.stderr.splitlines() if message in line)
    assert line == done.stderr.splitlines()[-1] or "left" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_plain_handler_runs_in_a_thread(scraper):
    done = start(scraper(PLAIN.format(", browser=False")), "scraper:scrape")
    assert (done.returncode, json.loads(done.stdout)["result"]) == (0, "a"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["async def scrape(worker):\n    raise ValueError('mine')\n", "raise ValueError('mine')\n"],
)
def test_what_the_user_s_code_raises_is_shown_and_1(scraper, text):
    done = start(scraper(text), "scraper:scrape")
    assert done.returncode == 1
    assert "scraper:scrape raised" in done.stderr
    assert "scraper.py" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import not_there\n", "scraper.py, line 1: ModuleNotFoundError: No module named 'not_there'"),
        ("async def scrape(worker)\n    pass\n", "scraper.py, line 1: SyntaxError: expected ':'"),
        ("x = y\n", "scraper.py, line 1: NameError: name 'y' is not defined"),
    ],
)
def test_a_module_that_can_never_be_imported_is_one_line_and_78(scraper, text, said):
    done = start(scraper(text), "scraper:scrape")
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1), done.stderr
    assert said in done.stderr


@pytest.mark.slow
def test_a_function_that_processes_nothing_ends_well(scraper):
    assert start(scraper("async def scrape(worker): pass\n"), "scraper:scrape").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(scraper, number):
    folder = scraper(
        "import asyncio\n"
        "async def scrape(worker):\n"
        "    await worker.process(['a', 'b'], one, browser=False)\n"
        "    print('draining', worker.draining)\n"
        "async def one(item):\n"
        "    print('in hand', flush=True)\n"
        "    await asyncio.get_running_loop().run_in_executor(None, input)\n"
    )
    with subprocess.Popen(
        [*COMMAND, "scraper:scrape"], cwd=folder, env=ENVIRONMENT, stdin=-1, stdout=-1, stderr=-1, text=True
    ) as process:
        assert process.stdout.readline() == "in hand\n"
        process.send_signal(number)
        out, err = process.communicate("\n", timeout=60)
    assert process.returncode == 0, err
    assert out.endswith("draining True\n")
    assert "1 done, 0 failed, 1 left" in err


@pytest.mark.slow
def test_half_an_environment_is_explained(scraper):
    environment = {**ENVIRONMENT, "SCRAPER_WORKER_SOCKET": "/nowhere", "SCRAPER_WORKER_NAME": "g-0"}
    done = start(scraper("async def scrape(worker): pass\n"), "scraper:scrape", environment=environment)
    assert done.returncode == 1
    assert "SCRAPER_WORKER_TOKEN" in done.stderr


async def spawn(folder, fake):
    environment = {
        **ENVIRONMENT,
        "SCRAPER_WORKER_SOCKET": fake.path,
        "SCRAPER_WORKER_NAME": "g-0",
        "SCRAPER_WORKER_TOKEN": "secret",
    }
    return await asyncio.create_subprocess_exec(
        *COMMAND, "scraper:scrape", cwd=folder, env=environment, stderr=subprocess.PIPE
    )


@pytest.mark.slow
async def test_under_a_supervisor_it_says_hello_and_goodbye(scraper, fake):
    process = await spawn(scraper("async def scrape(worker): assert worker.group == 'g'\n"), fake)
    peer = await fake.accept()
    hello = await peer.welcome()
    assert (hello["worker"], hello["token"]) == ("g-0", "secret")
    said = await peer.expect("goodbye")
    assert said["reason"] == "complete"
    peer.answer(said, {})
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.slow
async def test_a_refused_worker_exits_non_zero(scraper, fake):
    process = await spawn(scraper("async def scrape(worker): pass\n"), fake)
    peer = await fake.accept()
    peer.refuse(await peer.expect("hello"), -32003, "wrong token")
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors == b"scraper_worker: g-0: the supervisor refused g-0: wrong token (-32003)\n"


@pytest.mark.slow
def test_a_second_signal_ends_at_once(scraper):
    folder = scraper(
        "import asyncio\n"
        "async def scrape(worker):\n"
        "    await worker.process(['a'], one, browser=False)\n"
        "async def one(item):\n"
        "    print('in hand', flush=True)\n"
        "    while not draining(): await asyncio.sleep(0.001)\n"
        "    print('draining', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "def draining():\n"
        "    return any(task.get_coro().cr_frame.f_locals['worker'].draining for task in asyncio.all_tasks()\n"
        "               if task.get_coro().__name__ == 'run')\n"
    )
    with subprocess.Popen(
        [*COMMAND, "scraper:scrape"], cwd=folder, env=ENVIRONMENT, stdout=-1, stderr=-1, text=True
    ) as process:
        for line in ("in hand\n", "draining\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err


@pytest.mark.slow
def test_what_a_handler_leaves_behind_ends_neither_the_loop_nor_the_process_s_exit(scraper):
    folder = scraper(
        "import asyncio, sys, threading, time\n"
        "kept = []\n"
        "async def scrape(worker):\n"
        "    await worker.process(['exit', 'interrupt', 'stop', 'stubborn', 'thread', 'good'], one, browser=False)\n"
        "async def one(item):\n"
        "    loop = asyncio.get_running_loop()\n"
        "    if item.key in ('exit', 'interrupt'):\n"
        "        kept.append(loop.create_task(late(SystemExit if item.key == 'exit' else KeyboardInterrupt)))\n"
        "        await asyncio.sleep(0.05)\n"
        "    if item.key == 'stop':\n"
        "        loop.stop()\n"
        "        await asyncio.sleep(0.05)\n"
        "    if item.key == 'stubborn':\n"
        "        kept.append(loop.create_task(stubborn()))\n"
        "    if item.key == 'thread':\n"
        "        threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "    return item.key\n"
        "async def late(error):\n"
        "    raise error\n"
        "async def stubborn():\n"
        "    while True:\n"
        "        try:\n"
        "            await asyncio.sleep(600)\n"
        "        except asyncio.CancelledError:\n"
        "            pass\n"
    )
    done = start(folder, "scraper:scrape")
    assert done.returncode == 0, done.stderr
    assert "6 done, 0 failed, 0 left" in done.stderr
    assert done.stderr.count("came out of the event loop") == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["async def", "def"])
def test_a_source_that_fails_is_a_failure_of_the_worker(scraper, kind):
    folder = scraper(
        f"{kind} keys():\n"
        "    for number in range(6):\n"
        "        yield str(number)\n"
        "    raise ValueError('no more pages')\n"
        "async def scrape(worker):\n"
        "    await worker.process(keys(), one, browser=False)\n"
        "async def one(item):\n"
        "    return None\n"
    )
    done = start(folder, "scraper:scrape")
    assert done.returncode == 1
    assert "6 done, 0 failed, 0 left" in done.stderr
    assert "ValueError: no more pages" in done.stderr


BY_HAND = """
async def scrape(worker):
    await worker.process([{"key": "a", "data": {"n": 7}}, "b"], one, browser=False)
async def one(item):
    await item.offer(["found"])
    if item.key == "bad":
        raise ValueError("mine")
    return [item.key, item.data]
"""


@pytest.mark.slow
@pytest.mark.parametrize(("key", "data"), [("a", {"n": 7}), ("other", None)])
def test_one_item_is_run_by_hand(scraper, key, data):
    environment = {**ENVIRONMENT, "SCRAPER_WORKER_SOCKET": "/nowhere"}  # a supervisor has no part in it
    done = start(scraper(BY_HAND), "scraper:scrape", "--key", key, environment=environment)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["result"] == [key, data]
    assert "by hand" in done.stderr
    assert "offered on the way, 1 in all: found" in done.stderr


@pytest.mark.slow
def test_an_item_that_fails_by_hand_is_tried_once_and_its_traceback_shown(scraper):
    done = start(scraper(BY_HAND), "scraper:scrape", "--key=bad")
    assert (done.returncode, done.stdout) == (1, "")
    assert "failed after 1 attempts" in done.stderr
    assert 'in one\n    raise ValueError("mine")' in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--key"], ["--key", ""], ["--headed"], ["--other"], ["--key", "a", "b"]])
def test_by_hand_wrong_usage_is_told(scraper, more):
    done = start(scraper(BY_HAND), "scraper:scrape", *more)
    assert done.returncode == 2
    assert "[--key KEY [--headed]]" in done.stderr


@pytest.mark.slow
@pytest.mark.browser
def test_headed_asks_for_a_browser_that_is_seen(scraper):
    text = "async def scrape(worker):\n    await worker.process([], one)\nasync def one(item):\n    return 1\n"
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = start(scraper(text), "scraper:scrape", "--key", "a", "--headed", environment=environment)
    assert done.returncode == 78, done.stderr
    assert "xvfb-run" in done.stderr, "Playwright's own advice"
