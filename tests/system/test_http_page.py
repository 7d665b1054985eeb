"""The status page in a browser without a screen: what it shows, from one file and nothing else."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

from tests.launch import requires, run
from tests.serving import Fake, serving
from weft.runtime.serve.http.front import PAGE

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# As root it wants no sandbox; the rest keeps it from looking for its maker.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--virtual-time-budget=3000",
]


def shown(url: str, folder: Path, *more: str) -> str:
    """The page's text after it has asked the server."""
    requires(BROWSER is not None, "a browser: apt-get install chromium")
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'browser'}", *more, "--dump-dom", url]
    result = run(command, timeout=120)
    assert result.returncode == 0, result.stderr
    body = re.sub(r"<(script|style).*?</\1>", "", result.stdout, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def test_s5_the_page_shows_who_serves_what(tmp_path: Path):
    service = Fake()
    service.loaded |= {"<img src=x onerror=alert(1)>", "constructor", "__proto__"}
    with serving(service) as server:
        text = shown(server.url, tmp_path)
        assert server.errors == []
    assert "4 ranks, up 2 h 15 min ready" in text
    assert "260 the first for 1.2 s" in text  # waiting
    assert "2,222 overload 2,210, expired 12" in text  # refused
    assert re.search(r"interactive 99.98 % 0.3\d % 8.1 ms 41 ms 3 ", text)
    assert "bulk 100 % 0.00 % – – 240" in text  # not measured yet
    assert "rank 1 cpu ready digits, resnet50 87 % busy, 2 queued" in text
    assert "rank 3 gpu 0 silent no model 0 % busy" in text
    assert "rank 2 cpu digits 1 0.82 ms 1.7 ms 1,220 19.0 %" in text
    assert "echo 1, 2" in text
    assert "<img src=x onerror=alert(1)> 1, 2" in text  # a name, and no more
    assert "__proto__ 1, 2" in text  # which every object of JavaScript's has
    assert "constructor 1, 2" in text


def test_the_page_tells_when_nobody_serves_and_when_it_may_not_know(tmp_path: Path):
    with serving(Fake(ready=False)) as server:
        assert "not ready" in shown(server.url, tmp_path)
    with serving(token="secret") as server:
        assert "a bearer token is wanted" in shown(server.url, tmp_path)


def test_the_page_is_one_file_and_asks_nobody_else():
    text = PAGE.read_text()
    assert re.findall(r"https?://\S+", text) == []
    assert "innerHTML" not in text
