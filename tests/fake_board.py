"""A board that is a folder: its programs run here, in an environment of their own, and its cable can be cut.

With it a bundle whose engines are a stub: it "measures" in steps, keeps a journal, and does as the board's file
`behaviour` says.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar, cast

from edgekit.bundle.bundle import Bundle, open_bundle, write_manifest
from edgekit.bundle.manifest import Artefact, Manifest, Model, TargetRef
from edgekit.devices.base import UnreachableError
from edgekit.devices.process import HELD, Cancel, Completed, converse
from edgekit.devices.shell import ShellDevice
from edgekit.errors import EdgekitError

T = TypeVar("T")
STEPS = 5
Fault = Literal["before", "after", "garbage", "huge", "nothing", "escape"]
HOSTILE = {
    "garbage": bytes(range(256)) * 40, "huge": b"x" * (20 << 20), "nothing": b"",
    "escape": b"begin:\n\x1b]0;pwned\x07\x1b[2J:\nend:\n",
}  # fmt: skip

_SHIMS = {
    "cat": 'for last; do :; done; [ "$last" != /proc/sys/kernel/random/boot_id ] || exec /bin/cat "$BOARD/boot"\n'
    'exec /bin/cat "$@"\n',
    "sleep": 'case $1 in 1 | 0.2) exit 0 ;; esac; exec /bin/sleep "$@"\n',
    "df": 'if [ -f "$BOARD/free" ]; then echo "head"; echo "/dev/x 1 1 $(/bin/cat "$BOARD/free") 1% /"\n'
    'else exec /bin/df "$@"; fi\n',
}
_INSTALL = """\
set -eu
root=$(cd "$(dirname "$0")" && pwd -P)
place=$EDGEKIT_HOME/$(basename "$root")-$(sha256sum <"$root/manifest.json" | cut -c 1-12)
[ "${1:-}" != --place ] || { echo "$place"; exit 0; }
[ ! -f "$HOME/slow-install" ] || { sleep 600 & sleep 600; }
[ ! -f "$HOME/no-install" ] || { echo "edgekit: this bundle needs Python 3.99." >&2; exit 24; }
mkdir -p "$place/venv/bin"
cp "$root/runtime/python" "$place/venv/bin/python"
chmod +x "$place/venv/bin/python"
cp "$root/runtime/stub.py" "$place/venv/stub.py"
"""


def stub_python(python: str) -> str:
    """What stands for the Python of the installed environment: itself, but for edgekit the stub."""
    return f"""\
#!/bin/sh
[ "$2" = -m ] || exec {python} "$@"
shift 4
exec {python} -I -S "$(dirname "$0")/../stub.py" "$@"
"""


_PYTHON = stub_python(sys.executable)
_STUB = f"""\
import json, os, signal, sys, time
options = dict(zip(sys.argv, sys.argv[1:]))
behaviour = ""
try:
    behaviour = open(os.environ["HOME"] + "/behaviour").read().strip()
except OSError:
    pass
assert os.environ["EDGEKIT_BOARD_LOCK"] and os.path.isdir(os.environ["TMPDIR"])
journal = options["--journal"] + "/journal"
done = open(journal).read().split() if os.path.exists(journal) else []
with open(os.environ["HOME"] + "/parts", "a") as stream:
    stream.write("part\\n")
for step in map(str, range({STEPS})):
    if step in done:
        continue
    if behaviour == f"wait {{step}}":
        print("waiting", file=sys.stderr, flush=True)
        while os.path.exists(os.environ["HOME"] + "/behaviour"):
            time.sleep(0.02)
    if behaviour == f"fail {{step}}":
        print("edgekit: the disk of the board is on fire.", file=sys.stderr)
        sys.exit(27)
    if behaviour == f"kill {{step}}":
        os.kill(os.getpid(), signal.SIGKILL)
    print("step", step, "\\x1b[31m", file=sys.stderr, flush=True)
    done.append(step)
    with open(journal, "a") as stream:
        stream.write(step + "\\n")
with open(options["--json"], "w") as stream:
    json.dump({{"steps": done, "arguments": sys.argv[1:]}}, stream)
"""


def bundle(folder: Path, *, size: int = 4096, target: str = "host", installer: bool = True) -> Bundle:
    """A sealed bundle whose engines are the stub."""
    files = {
        "gguf/model.gguf": os.urandom(size), "tokenizer/tokenizer.json": b"{}",
        "runtime/python": _PYTHON.encode(), "runtime/stub.py": _STUB.encode(),
    }  # fmt: skip
    if installer:
        files["install.sh"] = _INSTALL.encode()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    manifest = Manifest(
        edgekit="0", name=folder.name, target=TargetRef(id=target, sha256="0" * 64),
        model=Model(name="tiny", architecture="tiny", source="a test", sha256="0" * 64, parameters=1),
        artefacts=(
            Artefact(
                format="gguf", path="gguf/model.gguf", engine="llama.cpp", requested_bits=4, effective_bits=4, plan=()
            ),
        ),
    )  # fmt: skip
    write_manifest(folder, manifest)
    return open_bundle(folder)


@dataclass
class Board:
    """The board, and the transport to it."""

    folder: Path
    cancel: Cancel = field(default_factory=Cancel)
    faults: dict[int, Fault] = field(default_factory=dict)
    """Number of a call → what goes wrong with it."""
    calls: list[list[str]] = field(default_factory=list)
    fed: int = 0
    """Bytes that were sent."""
    feed_most: int | None = None
    """The cable is cut, once, after that many bytes of a transfer."""
    on_call: Callable[[int, Sequence[str]], None] = lambda _number, _command: None

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        for name, text in _SHIMS.items():
            path = self.folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            if not path.exists():  # a second connection to it may come while the first one runs it
                path.write_text("#!/bin/sh\n" + text)
                path.chmod(0o755)
        self.boot("11111111-0000")

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def base(self) -> Path:
        """Our folder on it."""
        return self.home / ".local" / "share" / "edgekit" / "bench"

    def device(self) -> ShellDevice:
        return ShellDevice("ssh://board", "ssh://board", "ssh", self, self.cancel)

    def boot(self, boot_id: str) -> None:
        (self.folder / "boot").write_text(boot_id + "\n")

    def behave(self, how: str) -> None:
        (self.home / "behaviour").write_text(how)

    def steps_done(self) -> list[str]:
        found = [path.read_text().split() for path in self.base.glob("runs/*/journal/journal")]
        return found[0] if found else []

    def power_cut(self) -> None:
        """Everything of a measurement dies at once, and the board boots again."""
        for path in self.base.glob("runs/*/log.handle"):
            with suppress(ProcessLookupError, ValueError):
                os.killpg(int(path.read_text().split(".")[0]), signal.SIGKILL)
        (self.home / "behaviour").unlink(missing_ok=True)
        self.boot("22222222-0000")

    def running(self) -> list[str]:
        """Command lines of what was started on it and still runs."""
        import psutil

        mark, found = str(self.folder), []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("BOARD") == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return found

    def clean(self) -> bool:
        """Whether nothing of a measurement is left."""
        deadline = time.monotonic() + 20
        while self.running() and time.monotonic() < deadline:  # what was killed takes a moment to die
            time.sleep(0.02)
        return not os.path.lexists(self.base / "lock") and not list(self.base.glob("runs/*")) and not self.running()

    # --- Transport

    def converse(
        self, command: Sequence[str], *, source: BinaryIO | None, timeout: float, limit: int,
        sent: Callable[[int], None] | None,
    ) -> Completed:  # fmt: skip
        number = len(self.calls)
        self.calls.append(list(command))
        self.on_call(number, command)
        fault = self.faults.get(number)
        if fault == "before":
            raise UnreachableError("ssh://board has cut the connection")
        if fault in HOSTILE:
            data = HOSTILE[fault]
            return Completed(0, data[:limit], data[:1000], cut=len(data) > limit)
        cut = False

        def count(size: int) -> None:
            nonlocal cut
            self.fed += size
            if sent is not None:
                sent(size)
            if self.feed_most is not None and self.fed >= self.feed_most:
                self.feed_most, cut = None, True

        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(self.home), "BOARD": str(self.folder),
            "LC_ALL": "C",
        }  # fmt: skip
        piece = source if source in (None, HELD) else _Until(source, lambda: cut)
        done = converse(
            command, source=cast("BinaryIO | None", piece), timeout=timeout, limit=limit, cancel=self.cancel,
            environment=environment, sent=count,
        )  # fmt: skip
        if cut or fault == "after":
            raise UnreachableError("ssh://board has cut the connection")
        return done

    def close(self) -> None:
        pass


class _Until:
    """Reads small pieces until the cable is cut; then there is nothing more."""

    def __init__(self, source: BinaryIO, cut: Callable[[], bool]) -> None:
        self._source, self._cut = source, cut

    def read(self, size: int) -> bytes:
        return b"" if self._cut() else self._source.read(min(size, 1000))


def damaged_copy(original: Bundle, folder: Path) -> Path:
    """The same bundle with one changed byte."""
    shutil.copytree(original.root, folder)
    path = folder / "gguf/model.gguf"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    return folder


def read_or_refused(read: Callable[..., T], *arguments: object) -> T | None:
    """What a reader makes of a stranger's bytes; None when it refuses them in one printable sentence."""
    try:
        return read(*arguments)
    except EdgekitError as error:
        refused = error.sentence()
    assert refused.isprintable()
    assert len(refused) < 3000
    return None
