"""The file of profiles: read, written when they change, and told of once where it cannot be."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path

import pytest

from weft.runtime.errors import Mistake
from weft.runtime.serve import profile_file
from weft.runtime.serve.profile import Profiles
from weft.runtime.serve.profile_file import ProfileFile


def learn(profiles: Profiles) -> None:
    profiles.of("rank 0 cpu", "digits/1").measured(1, 0.01, 0.0)


def served(path: Path, *events) -> None:
    """A server's time with this file; `events` are called one after the other, with pauses between."""

    async def main() -> None:
        file = ProfileFile(path)
        profiles = file.read()
        file.keep(profiles, lambda coroutine, name: asyncio.create_task(coroutine, name=name))
        for event in events:
            event(profiles)
            await asyncio.sleep(0.05)
        await file.close()

    asyncio.run(main())


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(profile_file, "EVERY_S", 0.01)


def test_what_was_learned_is_there_for_the_next_server(tmp_path):
    path = tmp_path / "profiles.json"
    served(path, learn)
    assert ProfileFile(path).read().of("rank 0 cpu", "digits/1").results == 1


def test_the_last_results_are_written_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(profile_file, "EVERY_S", 60.0)
    path = tmp_path / "profiles.json"
    served(path, learn)
    assert len(json.loads(path.read_text())) == 1


def test_what_is_learned_while_the_file_is_written_for_the_last_time_but_one_is_written_too(
    tmp_path, monkeypatch
):
    path = tmp_path / "profiles.json"
    writing, go_on = threading.Event(), threading.Event()
    write = ProfileFile._write

    def slow(self, profiles):
        writing.set()
        assert go_on.wait(10)
        write(self, profiles)

    async def main() -> None:
        file = ProfileFile(path)
        profiles = file.read()
        monkeypatch.setattr(ProfileFile, "_write", slow)
        file.keep(profiles, lambda coroutine, name: asyncio.create_task(coroutine, name=name))
        learn(profiles)
        assert await asyncio.to_thread(writing.wait, 10)
        learn(profiles)
        closing = asyncio.create_task(file.close())
        await asyncio.sleep(0.01)
        go_on.set()
        await closing

    asyncio.run(main())
    assert ProfileFile(path).read().of("rank 0 cpu", "digits/1").results == 2


def test_what_has_not_changed_is_not_written(tmp_path):
    path = tmp_path / "profiles.json"
    served(path, learn)
    written = path.stat().st_mtime_ns, path.stat().st_ino
    served(path, lambda profiles: None)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == written
    assert [each.name for each in tmp_path.iterdir()] == ["profiles.json"]


def test_a_file_that_cannot_be_written_is_told_of_once(tmp_path, capfd):
    served(tmp_path / "none" / "profiles.json", learn, learn, learn)
    told = capfd.readouterr().err
    assert told.count("profiles.json cannot be written (No such file or directory)") == 1
    assert "--profiles" in told


def test_a_disk_that_has_room_again_gets_what_was_learned_meanwhile(tmp_path):
    path = tmp_path / "none" / "profiles.json"
    served(path, learn, lambda profiles: path.parent.mkdir())
    assert len(json.loads(path.read_text())) == 1


def test_two_servers_of_one_repository_do_not_write_into_each_others_file(tmp_path, monkeypatch):
    path = tmp_path / "profiles.json"
    one, other = ProfileFile(path), ProfileFile(path)
    found = Profiles()
    learn(found)
    replace = os.replace

    def in_between(source, target):
        monkeypatch.setattr(profile_file.os, "replace", replace)
        other._write([])
        replace(source, target)

    monkeypatch.setattr(profile_file.os, "replace", in_between)
    one._write(found.to_list())
    assert ProfileFile(path).read().of("rank 0 cpu", "digits/1").results == 1
    assert [each.name for each in tmp_path.iterdir()] == ["profiles.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"resource": "r"}]', "3", "[" * 100_000])
def test_a_file_that_holds_no_profiles_is_refused_by_name(tmp_path, text):
    path = tmp_path / "profiles.json"
    path.write_text(text)
    with pytest.raises(Mistake, match=r"profiles.json: holds no profiles .* --profiles"):
        ProfileFile(path).read()


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    with pytest.raises(Mistake, match=r"cannot be read: Is a directory; name another file with --profiles"):
        ProfileFile(tmp_path).read()
