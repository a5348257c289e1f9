"""A model of the hub: a real huggingface_hub downloads it from a hub on this machine."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_hub
import pytest
import tiny
from conftest import Cli
from fake_hub import REPO, SHA, Hub
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny

from edgekit.checkpoint.hub import HubId, hub_checkpoint, is_hub_id
from edgekit.checkpoint.source import resolve
from edgekit.errors import (
    DownloadError,
    EdgekitError,
    InputNotFoundError,
    OptionError,
    OutputError,
    UnsafeCheckpointError,
)
from edgekit.options import SourceOptions
from edgekit.progress import Advance

constants = pytest.importorskip("huggingface_hub.constants")
validate_repo_id = pytest.importorskip("huggingface_hub.utils").validate_repo_id
MODEL = HubId(REPO)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a tiny model and what else repositories hold; huggingface_hub looks there and has an empty cache."""
    folder = tiny.make(tmp_path / "files", Tiny(shards=2))
    (folder / "README.md").write_text("# Tiny")
    (folder / "modeling_tiny.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    (folder / "consolidated.safetensors").write_bytes(b"the same weights again")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    with fake_hub.serve(folder) as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the environment says
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield made


def refused(kind: type[EdgekitError], *words: str, model: HubId = MODEL, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        hub_checkpoint(model, **options)
    told = caught.value.sentence()
    assert type(caught.value) is kind
    assert "\n" not in told
    for word in (model.repo, *words):
        assert word in told


# -- what cannot be had


def test_no_such_model(hub: Hub) -> None:
    refused(InputNotFoundError, "no folder of that name here", "spelling", model=HubId("acme/other"))


def test_private_model(hub: Hub) -> None:
    hub.private = True
    refused(InputNotFoundError, "there is no model", "hf auth login")


def test_no_such_revision(hub: Hub) -> None:
    refused(InputNotFoundError, "'v9'", "--revision", model=HubId(REPO, "v9"))


def test_gated(hub: Hub) -> None:
    hub.gated = True
    refused(DownloadError, "gated", f"https://huggingface.co/{REPO}", "hf auth login")


def test_token_that_the_hub_does_not_take(hub: Hub) -> None:
    hub.status = 403
    refused(DownloadError, "HTTP 403", "hf auth login")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_hub_out_of_order(status: int, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.status = status
    refused(DownloadError, f"HTTP {status}", "--offline")


def test_page_of_a_proxy(hub: Hub) -> None:
    hub.page = b"<html>Please log in to this network</html>"
    refused(DownloadError, "does not speak its language", "proxy")


@pytest.mark.parametrize("revision", ["", "../../x", "a b", "-x", "main\n"])
def test_revision_that_is_no_name(revision: str, hub: Hub) -> None:
    with pytest.raises(OptionError, match="--revision"):
        hub_checkpoint(HubId(REPO, revision))
    assert hub.asked == []


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    monkeypatch.setattr("time.sleep", lambda _: None)
    refused(DownloadError, "cannot be reached", "--offline", "spelling")


def test_pickles_only(hub: Hub) -> None:
    for path in hub.folder.glob("*.safetensors*"):
        path.unlink()
    refused(UnsafeCheckpointError, "pytorch_model.bin", "pickles")
    assert hub.downloads() == [], "nothing is downloaded of a model that cannot be used"


def test_weights_of_another_kind(hub: Hub) -> None:
    for path in [*hub.folder.glob("*.safetensors*"), hub.folder / "pytorch_model.bin"]:
        path.unlink()
    refused(InputNotFoundError, "has no weights")
    (hub.folder / "config.json").unlink()
    (hub.folder / "model.Q4_K.gguf").write_bytes(b"GGUF")
    refused(InputNotFoundError, "no config.json", "GGUF")


def test_offline_and_never_downloaded(hub: Hub) -> None:
    refused(InputNotFoundError, "is not there", "hf download", "--offline", offline=True)
    assert hub.asked == []


def test_variable_for_offline_is_respected(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(InputNotFoundError, "HF_HUB_OFFLINE")
    assert hub.asked == []


def test_offline_and_half_downloaded(hub: Hub) -> None:
    hub_checkpoint(MODEL)
    lost = next((Path(constants.HF_HUB_CACHE)).rglob("snapshots/*/model-00002*"))
    lost.unlink()
    refused(InputNotFoundError, lost.name, offline=True)


def test_download_that_breaks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.breaks = "model-00002-of-00002.safetensors"
    with pytest.raises(EdgekitError) as caught:
        hub_checkpoint(MODEL)
    assert isinstance(caught.value, DownloadError)
    hub.breaks = ""
    assert hub_checkpoint(MODEL).source == f"hub {REPO}@{SHA}", "the next run goes on"


def test_full_disk(hub: Hub, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_disk / "hub"))
    refused(OutputError, "No space left", "HF_HOME")


def test_damaged_model_is_refused_as_in_a_folder(hub: Hub) -> None:
    (hub.folder / "model-00001-of-00002.safetensors").write_bytes(b"<html>")
    with pytest.raises(EdgekitError) as caught:
        hub_checkpoint(MODEL)
    assert caught.value.exit_code == 11


# -- what is had


def test_the_model_is_that_of_the_hub(hub: Hub) -> None:
    checkpoint = resolve(REPO)
    assert checkpoint.source == f"hub {REPO}@{SHA}"
    assert checkpoint.name == "tiny-model"
    wanted = tiny.weights(Tiny(shards=2))
    for tensor, weights in checkpoint.tensors():
        assert (weights == wanted[tensor.hf]).all()


def test_nothing_but_weights_tokenizer_and_configuration_is_downloaded(hub: Hub) -> None:
    root = hub_checkpoint(MODEL).root
    assert {path.relative_to(root).as_posix() for path in root.rglob("*")} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    }  # fmt: skip


def test_codes_of_a_training_are_downloaded_and_nothing_else_of_a_folder(hub: Hub) -> None:
    for name in ("edgekit/codes.safetensors", "edgekit/run.json", "model-of/codes-of-2.safetensors", "x/config.json"):
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_bytes(b"{}")
    root = hub_checkpoint(MODEL).root
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if "/" in path.relative_to(root).as_posix()}
    assert found == {"edgekit/codes.safetensors"}
    assert (hub_checkpoint(MODEL, offline=True).root / "edgekit" / "codes.safetensors").read_bytes() == b"{}"


def test_codes_without_weights_are_no_model(hub: Hub) -> None:
    for path in hub.folder.glob("*.safetensors*"):
        path.unlink()
    (hub.folder / "edgekit").mkdir()
    (hub.folder / "edgekit" / "codes.safetensors").write_bytes(b"codes")
    refused(UnsafeCheckpointError, "pytorch_model.bin", "pickles")


@pytest.mark.parametrize("revision", [None, "main", "v1", SHA])
def test_revisions_name_their_commit(revision: str | None, hub: Hub) -> None:
    assert hub_checkpoint(HubId(REPO, revision)).source.endswith(f"@{SHA}")


def test_second_time_nothing_is_downloaded_and_offline_nobody_is_asked(hub: Hub) -> None:
    first = hub_checkpoint(MODEL)
    hub.asked.clear()
    assert hub_checkpoint(MODEL).root == first.root
    assert hub.downloads() == []
    hub.asked.clear()
    for revision in (None, "main", SHA):
        again = hub_checkpoint(HubId(REPO, revision), offline=True)
        assert (again.root, again.source) == (first.root, first.source)
    assert hub.asked == []


def test_size_is_told_before_and_progress_while(hub: Hub) -> None:
    titles: list[str] = []
    seen: list[tuple[int, int]] = []

    class Told:
        def step(self, title: str) -> Any:
            titles.append(title)
            assert hub.downloads() == []
            return self

        def __enter__(self) -> Advance:
            return lambda done, total: seen.append((done, total))

        def __exit__(self, *_: object) -> None:
            pass

        def note(self, line: str) -> None:
            titles.append(line)

    root = hub_checkpoint(MODEL, progress=Told()).root
    size = sum(path.stat().st_size for path in root.iterdir())
    assert titles == [f"Download {REPO}, {size / 1e6:.1f} MB in 7 files"]
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_login_is_that_of_the_library(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    assert hub_checkpoint(MODEL).name == "tiny-model"
    assert hub.tokens == {"Bearer hf_accepted"}


# -- which names are of the hub


@pytest.mark.parametrize("name", ["a/b", "HuggingFaceTB/SmolLM2-135M-Instruct", "acme/x.y_z-1"])
def test_names_of_the_hub(name: str) -> None:
    assert is_hub_id(name)


@settings(max_examples=300, deadline=None)
@given(
    name=st.text("ab-._/ git9", max_size=12) | st.from_regex(r"\A[\w.-]{1,99}/[\w.-]{1,99}\Z", fullmatch=True),
)
def test_the_library_takes_every_name_of_the_hub(name: str) -> None:
    if is_hub_id(name):
        validate_repo_id(name)


@pytest.mark.parametrize(
    "name", ["a", "./a", "../a", "a/b/c", "/a/b", "a/", "a/..", "a/b ", "a\\b", "a/é", "a/b\n", ""]
)
def test_names_that_are_paths(name: str, cli: Cli) -> None:
    assert not is_hub_id(name)
    assert cli("plan", name).code in (10, 2)


def test_a_folder_of_that_name_wins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.make(tmp_path / "acme" / "tiny-model")
    assert resolve(REPO).source == "local folder tiny-model"
    with pytest.raises(EdgekitError, match="--revision"):
        resolve(REPO, SourceOptions(revision="v1"))
    assert hub.asked == []
    shutil.rmtree(tmp_path / "acme")
    assert resolve(REPO).source.startswith("hub ")


# -- the command line, with nothing but environment variables


def edgekit(hub: Hub, home: Path, *arguments: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if offline else "0"}
    return subprocess.run(
        [sys.executable, "-m", "edgekit", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **variables}, timeout=120,
    )  # fmt: skip


def test_plan_and_inspect(hub: Hub, tmp_path: Path) -> None:
    done = edgekit(hub, tmp_path / "home", "plan", REPO, "--format", "gguf")
    assert done.returncode == 0, done.stderr
    assert f"Download {REPO}, 0.2 MB in 7 files" in done.stderr
    assert "GGUF for rpi5" in done.stdout
    shown = edgekit(hub, tmp_path / "home", "inspect", REPO, "--json", offline=True)
    assert f"hub {REPO}@{SHA}" in shown.stdout
    hub.asked.clear()
    lost = edgekit(hub, tmp_path / "empty", "plan", REPO, "--offline")
    assert lost.returncode == 10
    assert lost.stderr.startswith(f"edgekit: {REPO} is not there in the download cache")
    assert hub.asked == []
