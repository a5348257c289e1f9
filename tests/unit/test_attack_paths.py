"""Files that are no files, names that lead elsewhere or write to the terminal: nothing hangs or gets through raw."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
import tiny
from conftest import Cli

from edgekit.bundle.manifest import MANIFEST
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.coherence import text
from edgekit.errors import EdgekitError, TokenizerError, one_line

ESCAPE = "\x1b]0;title\x07\x1b[2J"
BIDI = "\u202egnp.exe"


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Opening a fifo waits for a writer who never comes."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("waited for a fifo")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def put_odd_file(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        places = {"device": "/dev/zero", "nowhere": "/no/such/file", "memory": "/proc/self/mem"}
        path.symlink_to(places.get(kind, path.name))


KINDS = ("fifo", "device", "loop", "nowhere", "folder", "empty", "memory")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"],
)
def test_odd_file_in_a_model_folder(name: str, kind: str, cli: Cli, model: Path) -> None:
    put_odd_file(model / name, kind)
    for verb in ("inspect", "plan"):
        result = cli(verb, model)
        assert result.code == 0 or "Traceback" not in result.err
        if result.code:
            result.refused(result.code)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x.gguf", "x.onnx", "x.safetensors", "x"])
def test_odd_file_to_inspect(name: str, kind: str, cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    put_odd_file(tmp_path / name, kind)
    result = cli("inspect", tmp_path / name)
    assert result.code in (10, 11, 26)
    result.refused(result.code)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_manifest_and_target_and_text(kind: str, cli: Cli, tmp_path: Path) -> None:
    for name in (MANIFEST, "x.toml", "text.txt"):
        put_odd_file(tmp_path / name, kind)
    verified = cli("verify", tmp_path, "--checksums-only")
    assert verified.code == 20
    assert verified.err.splitlines()[-1].startswith("edgekit: ")
    result = cli("targets", "validate", tmp_path / "x.toml")
    result.refused(result.code)
    with pytest.raises((EdgekitError, OSError)):
        text.from_file(tmp_path / "text.txt", lambda said: list(said.encode()), 1, 8)


@pytest.mark.parametrize("kind", ["fifo", "device", "loop", "folder"])
@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json"])
def test_odd_file_beside_a_tokenizer(name: str, kind: str, model: Path) -> None:
    (model / "tokenizer_config.json").unlink()
    put_odd_file(model / name, kind)
    try:
        tokenizer = load_tokenizer(model)
    except TokenizerError:
        return
    assert tokenizer.template is None


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b", "..", ".", "", "\0", "x" * 300, ESCAPE, BIDI]
)
def test_shard_names(name: str, cli: Cli, model: Path) -> None:
    names = list(tiny.weights(tiny.Tiny()))
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
    result = cli("plan", model)
    assert result.code in (10, 11)
    result.refused(result.code)


def test_link_of_a_shard_may_leave_the_folder(cli: Cli, model: Path, tmp_path: Path) -> None:
    """As in the cache of huggingface_hub: a folder of links to blobs. A model folder is read, never written."""
    (model / "model.safetensors").rename(tmp_path / "blob")
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    assert cli("plan", model).code == 0


@pytest.mark.parametrize("parent", ["_" + "a" * 300, "a" * 300, "_../x", "../" * 30 + "etc/passwd.toml", "_\n", ESCAPE])
def test_parents_of_a_target(parent: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f"inherits = {json.dumps(parent)}\n")
    result = cli("targets", "validate", tmp_path / "x.toml")
    result.refused(17)


def test_target_of_the_user_may_be_anywhere(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.toml").write_text('inherits = "rpi5"\nschema_version = 1\nname = "x"\ntitle = "X"\ntier = 3\n')
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert cli("targets", "validate", "../../x.toml").code == 0


# --- what reaches the terminal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [ESCAPE, BIDI, "a\nb", "\x9b31m", "\u2028", "\udcff", "\0"])
def test_sentences_are_one_printable_line(said: str) -> None:
    error = EdgekitError(said, expected=said, remedy=said)
    assert error.sentence().isprintable()
    assert error.found != said


def test_sentences_are_bounded() -> None:
    assert len(EdgekitError("x" * 10**6, expected="y" * 10**6, remedy="z" * 10**6).sentence()) < 8000
    assert one_line("ordinary: é, 水, 🧯") == "ordinary: é, 水, 🧯"


TARGET = 'inherits = "rpi5"\nschema_version = 1\nname = "x"\ntier = 3\n'


@pytest.mark.parametrize(
    "body",
    [
        'title = "\\u001b[31m"',
        'title = "\\u009b31m"',
        'title = "\\u202egnp"',
        'title = "a\\nb"',
        'title = "x"\n[power.modes."\\u001b[2J"]\nid = 1',
        'title = "x"\n[runtime.onnx.session]\n"mlas.disable_kleidiai" = "\\u001b[2J"',
        'title = "x"\n[probe]\nos_min_version = "\\u001b"',
    ],
)
def test_target_that_writes_to_the_terminal(body: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(TARGET + body)
    cli("targets", "validate", tmp_path / "x.toml").refused(17, "without control characters")


def test_model_that_writes_to_the_terminal(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model says is shown without control characters, emoji sequences whole."""
    from test_bundle import bare_manifest, fill

    from edgekit import chat
    from edgekit.bundle.bundle import write_manifest
    from edgekit.engines import opening

    class Still:
        def close(self) -> None:
            pass

    bundle = tmp_path / "bundle"
    bundle.mkdir()
    fill(bundle)
    import tiny_tokenizers

    tiny_tokenizers.write(bundle / "tokenizer", "smollm", 300)
    write_manifest(bundle, bare_manifest())
    family = "\U0001f468\u200d\U0001f469"
    monkeypatch.setattr(opening, "open_engine", lambda *_, **__: Still())
    monkeypatch.setattr(chat, "generate_text", lambda *_, **__: iter(["a\tb\n", ESCAPE, "\x9b31m", family]))
    result = cli("run", bundle, "hi")
    assert result.code == 0, result.err
    assert result.out == "a\tb\n\\x1b]0;title\\x07\\x1b[2J\\x9b31m" + family + "\n"


# --- odd command lines -----------------------------------------------------------------------------------------------

ODD = (
    "", " ", ".", "..", "/", "-", "~", ESCAPE, "a\nb", BIDI, "x" * 300, "x" * 70_000, "é" * 200, "demo\n", "nan",
    "/dev/null", "/dev/zero", "/proc/self/mem", "http://[::1", "../../x.toml", "/.toml", "org/model@main",
)  # fmt: skip


@pytest.mark.parametrize("word", ODD, ids=range(len(ODD)))
def test_odd_words(word: str, cli: Cli, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for arguments in (
        ["inspect", word], ["verify", word, "--checksums-only"], ["run", word, "hi"], ["plan", word],
        ["plan", sound, "--target", word], ["targets", "show", word], ["targets", "validate", word],
        ["build", sound, "--no-runtime", "--text", word], [word],
    ):  # fmt: skip
        result = cli(*arguments)
        assert 0 < result.code < 126, (arguments, result)
        assert "Traceback" not in result.err
        if result.code != 2:  # click's own way of telling
            assert result.err.splitlines()[-1].isprintable()
    assert not [path for path in tmp_path.rglob("*") if path.name != "dist"], "nothing was written"


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--temperature", ["nan", "inf", "-1", "1e999", "", "x"]),
        ("--top-p", ["nan", "0", "-0", "2", "inf"]),
        ("--seed", ["-1", "9" * 5000, "1.5", ""]),
        ("--max-tokens", ["0", "-1", "nan"]),
        ("--context", ["0", "15", "nan"]),
    ],
)
def test_odd_numbers(option: str, values: list[str], cli: Cli, tmp_path: Path) -> None:
    for value in values:
        result = cli("run", tmp_path, "hi", option, value)
        assert result.code in (2, 20, 29), (value, result)
        assert "Traceback" not in result.err


def edgekit(*arguments: bytes | str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "edgekit", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False)


@pytest.mark.parametrize("verb", [["inspect"], ["plan"], ["targets", "show"], ["targets", "validate"]])
def test_arguments_that_are_not_utf8(verb: list[str]) -> None:
    ran = edgekit(*verb, b"/tmp/\xff\xfe\x1b[31m")
    assert ran.returncode in (10, 16, 17)
    told = ran.stderr.decode()
    assert told.startswith("edgekit: ")
    assert told[:-1].isprintable()


def test_folder_that_is_not_utf8(tmp_path: Path) -> None:
    """What is sound is shown, its name escaped."""
    model = tiny.make(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[31m")))
    ran = edgekit("inspect", os.fsencode(model))
    assert ran.returncode == 0, ran.stderr
    assert b"\x1b" not in ran.stdout
    assert ran.stdout.decode()


@pytest.mark.parametrize("arguments", [["targets"], ["targets", "list", "--json"], ["--version"], ["doctor"]])
def test_output_that_cannot_be_written(arguments: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        ran = edgekit(*arguments, stdout=full)
    finally:
        os.close(full)
    assert ran.returncode == 27, ran.stderr
    assert ran.stderr.decode().count("\n") == 1
    assert b"No space left" in ran.stderr


def test_terminal_without_unicode() -> None:
    command = [sys.executable, "-m", "edgekit", "targets", "show", "rpi5"]
    ran = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.decode("ascii")
