"""What a repository holds, and what is told of a wrong weft.toml."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from weft.runtime.errors import JobError, Mistake
from weft.runtime.serve.repository import Platform, Repository
from weft.runtime.serve.settings import ModelSettings, ServerSettings, read_settings


def put(root: Path, *names: str, text: str = "") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_versions_are_folders_named_by_whole_numbers_and_the_newest_is_the_greatest(tmp_path: Path):
    put(tmp_path, "m/1/model.onnx", "m/10/model.onnx", "m/2/job.toml", "m/old/model.onnx", "m/03/model.onnx")
    put(tmp_path, "m/0/model.onnx", "m/7", "file.txt", ".hidden/1/model.onnx")
    entry = Repository(tmp_path).scan()["m"]
    assert [(each.number, each.platform) for each in entry.versions] == [
        (1, Platform.ONNX),
        (2, Platform.CHECKPOINT),
        (10, Platform.ONNX),
    ]
    assert entry.wanted == entry.versions
    assert list(Repository(tmp_path).scan()) == ["m"]


def test_a_repository_may_be_named_as_text(tmp_path: Path):
    """A program's `Server.open(world, "models")` ended with an AttributeError."""
    put(tmp_path, "m/1/model.onnx")
    assert list(Repository(str(tmp_path)).scan()) == ["m"]


def test_a_folder_whose_name_is_no_text_is_no_model(tmp_path: Path):
    put(tmp_path, "m/1/model.onnx")
    os.makedirs(os.fsencode(tmp_path) + b"/\xff\xfe/1")
    assert list(Repository(tmp_path).scan()) == ["m"]


def test_a_link_to_a_run_is_a_version(tmp_path: Path):
    put(tmp_path, "runs/digits-20260101-000000/job.toml", "models/digits/placeholder")
    (tmp_path / "models/digits/1").symlink_to(tmp_path / "runs/digits-20260101-000000")
    (version,) = Repository(tmp_path / "models").entry("digits").versions
    assert version.platform is Platform.CHECKPOINT


def test_a_run_with_an_exported_file_is_its_checkpoint_which_may_be_newer(tmp_path: Path):
    put(tmp_path, "m/1/job.toml", "m/1/model.onnx")
    (version,) = Repository(tmp_path).entry("m").versions
    assert version.platform is Platform.CHECKPOINT


def test_the_folder_of_a_run_is_a_repository_of_that_run(tmp_path: Path):
    run = tmp_path / "runs/digits-20260101-000000"
    put(run, "job.toml", "metrics.jsonl", "checkpoints/step-00000001.safetensors")
    (tmp_path / "latest").symlink_to(run)
    for root in (run, tmp_path / "latest"):
        repository = Repository(root)
        (version,) = repository.entry("digits").wanted
        assert (version.number, version.path, version.platform) == (1, run, Platform.CHECKPOINT)
        assert list(repository.scan()) == ["digits"]
        assert repository.settings() == ServerSettings()


def test_a_folder_of_models_with_somebodys_job_beside_them_is_no_run(tmp_path: Path):
    put(tmp_path, "job.toml", "m/1/model.onnx")
    assert list(Repository(tmp_path).scan()) == ["m"]


def test_a_link_that_leads_nowhere_has_a_reason_and_hurts_no_other_version(tmp_path: Path):
    put(tmp_path, "m/2/model.onnx")
    (tmp_path / "m/1").symlink_to("../runs/x")
    (tmp_path / "n").mkdir()
    (tmp_path / "n/1").symlink_to("../runs/x")
    scanned = Repository(tmp_path).scan()
    assert [each.reason for each in scanned["m"].wanted] == [
        f"{tmp_path / 'm/1'} is a link to ../runs/x, which does not exist",
        "",
    ]
    (version,) = scanned["n"].wanted
    assert version.reason == f"{tmp_path / 'n/1'} is a link to ../runs/x, which does not exist"


def test_a_link_that_may_not_be_followed_has_a_reason_and_hides_no_other_model(tmp_path: Path):
    put(tmp_path, "m/1/model.onnx")
    beyond = "x" * 300  # refused by the system as a folder is that is another user's alone; and to root, too
    (tmp_path / "m/2").symlink_to(beyond)
    (tmp_path / "n").symlink_to(beyond)
    scanned = Repository(tmp_path).scan()
    assert [each.reason for each in scanned["m"].wanted] == [
        "",
        f"{tmp_path / 'm/2'} cannot be read: File name too long",
    ]
    assert scanned["n"].reason == f"{tmp_path / 'n/weft.toml'}: cannot be read: File name too long"
    with pytest.raises(Mistake, match=f"the model repository {tmp_path / beyond} cannot be read: File name"):
        Repository(tmp_path / beyond)


def test_only_the_versions_that_the_settings_name_are_wanted(tmp_path: Path):
    put(tmp_path, "m/1/model.onnx", "m/2/model.onnx", "m/3/model.onnx")
    put(tmp_path, "m/weft.toml", text="versions = [1, 3]\nmax_batch = 4\n")
    entry = Repository(tmp_path).entry("m")
    assert [each.number for each in entry.wanted] == [1, 3]
    assert entry.settings.max_batch == 4


def test_a_version_that_is_wanted_and_not_there_has_a_reason(tmp_path: Path):
    put(tmp_path, "m/1/model.onnx", "m/2/model.onnx")
    put(tmp_path, "m/weft.toml", text="versions = [2, 7]\n")
    two, seven = Repository(tmp_path).entry("m").wanted
    assert not two.reason
    assert "weft.toml: there is no version 7; there are 1, 2" in seven.reason


def test_a_variant_that_is_no_model_has_a_reason(tmp_path: Path):
    put(tmp_path, "m/1/model.onnx", "n/1/model.onnx")
    put(tmp_path, "m/weft.toml", text='variants = [{ model = "n" }, { model = "nonesuch" }]\n')
    entry = Repository(tmp_path).entry("m")
    assert "no model 'nonesuch'; there are m, n" in entry.reason
    assert not entry.wanted


@pytest.mark.parametrize(
    ("files", "name", "words"),
    [
        (["m/1/readme.txt"], "m", "holds readme.txt; it needs model.onnx, or a run's job.toml"),
        (["m/1/x/y"], "m", "holds x; it needs model.onnx"),
        (["m/readme.txt"], "m", "has no version: a folder named 1, 2, … with a model in it"),
        (["1/model.onnx"], "1", " with a model in it; if {here} is one model, the repository is {above}"),
        (
            ["r/job.toml", "r/checkpoints/x"],
            "r",
            "; it is a run: serve its folder alone, or link it as NAME/1",
        ),
        (["m/model.onnx"], "m", "; {here}/m/model.onnx belongs into {here}/m/1"),
    ],
    ids=[
        "a folder without a model",
        "a folder of folders",
        "no folder at all",
        "a model in the repository's place",
        "a folder of runs",
        "a model without a version",
    ],
)
def test_what_cannot_be_served_has_a_reason(tmp_path: Path, files: list[str], name: str, words: str):
    put(tmp_path, *files)
    entry = Repository(tmp_path).entry(name)
    words = words.format(here=tmp_path.resolve(), above=tmp_path.resolve().parent)
    assert words in (entry.reason or entry.versions[0].reason)


def test_a_model_with_wrong_settings_is_left_out_with_their_line(tmp_path: Path):
    put(tmp_path, "m/1/model.onnx", "n/1/model.onnx")
    put(tmp_path, "m/weft.toml", text='max_batch = 0\ndefault_clas = "x"\n')
    scanned = Repository(tmp_path).scan()
    assert "weft.toml:1: max_batch = 0: must be at least 1" in scanned["m"].reason
    assert 'weft.toml:2: default_clas = "x": unknown key; did you mean default_class?' in scanned["m"].reason
    assert "allowed: max_batch, default_class, deadline_ms" in scanned["m"].reason
    assert not scanned["m"].wanted
    assert scanned["n"].wanted


@pytest.mark.parametrize("name", ["..", "a/b", "", "missing"])
def test_a_name_that_is_no_model_says_what_there_is(tmp_path: Path, name: str):
    put(tmp_path, "m/1/model.onnx")
    with pytest.raises(Mistake, match=r"has no model .*; it holds m"):
        Repository(tmp_path).entry(name)


def test_a_model_that_goes_while_it_is_read_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, "m/1/model.onnx", "n/1/model.onnx")
    repository = Repository(tmp_path)
    names = repository.names()
    shutil.rmtree(tmp_path / "m")
    monkeypatch.setattr(repository, "names", lambda: names)
    scanned = repository.scan()
    assert scanned["m"].reason == f"{tmp_path / 'm'} cannot be read: No such file or directory"
    assert scanned["n"].wanted


def test_a_repository_that_is_not_there(tmp_path: Path):
    with pytest.raises(Mistake, match=r"does not exist; give a folder with NAME/VERSION/model\.onnx"):
        Repository(tmp_path / "nowhere")


SERVER = """
default_class = "urgent"
queue = 10
[classes.urgent]
deadline_ms = 20.0
priority = 1
[classes.rest]
priority = 2
[guarantees.payments]
per_s = 100.0
"""


def test_s5_2_classes_deadlines_and_guarantees_come_from_the_servers_file(tmp_path: Path):
    put(tmp_path, "weft.toml", text=SERVER)
    settings = Repository(tmp_path).settings()
    assert settings.default_class == "urgent"
    assert {name: (c.deadline_ms, c.priority) for name, c in settings.classes.items()} == {
        "urgent": (20.0, 1),
        "rest": (None, 2),
    }
    assert settings.guarantees["payments"].per_s == 100.0
    assert Repository(tmp_path).settings() == settings


@pytest.mark.parametrize(
    ("root", "text", "words"),
    [
        (ServerSettings, "[classes.a]\npriority = 1", r"default_class.*must name a class.*there are a"),
        (
            ServerSettings,
            "[classes.standard]\ndeadline = 5",
            r"toml:2: \[classes\] standard.deadline = 5: unknown",
        ),
        (
            ServerSettings,
            "[classes.standard]\ndeadline = 5",
            "allowed: deadline_ms, priority, share, patience_ms",
        ),
        (ServerSettings, "[guarantees]\nx = 3", r"\[guarantees\] x = 3: must be a table of keys"),
        (ServerSettings, "[classes]", r"\[classes\]: must not be empty"),
        (ModelSettings, 'variants = [{ modle = "x" }]', r"\[variants\] \[0\]\.modle"),
        (ModelSettings, "max_batch = \nx = 1", "weft.toml:1: not TOML"),
    ],
    ids=[
        "a default class that is none",
        "an unknown key of a class, with its line",
        "what a class may have",
        "a guarantee without a table",
        "no class",
        "an unknown key of a variant",
        "not TOML",
    ],
)
def test_wrong_settings_are_told(tmp_path: Path, root: type, text: str, words: str):
    put(tmp_path, "weft.toml", text=text)
    with pytest.raises(JobError, match=words):
        read_settings(root, tmp_path / "weft.toml")
