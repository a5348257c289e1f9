"""Attack a parser: `python -m tests.fuzz.run PARSER --count 100000`, or `--seconds 120` for a coverage-guided run.

PARSER is a name of tests/fuzz/parsers.py, or `all`: one after the other, each in a process of its own.

Every input is a damaged copy of a valid file. It may be accepted or refused in one sentence; any other exception, more
than 2 s of CPU time, more than 300 MiB of memory, a file touched outside the run's own folder, a process or socket
started: each is a finding, the input is kept and the exit code is 1. One JSON line at the end tells what was done.
`--replay FILE` tries a kept input again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

if any(argument.startswith("--seconds") for argument in sys.argv):  # coverage is built into modules on their way in
    import atheris

    with atheris.instrument_imports(include=["edgekit", "gguf", "jinja2", "tomllib"]):
        import parsers  # noqa: F401

from guard import Guard  # noqa: E402
from parsers import PARSERS, Parser, attack  # noqa: E402

MAX_FINDINGS = 20
MAX_INPUT = 1 << 20
_ADDRESS_SPACE = 12 << 30
"""Bytes. The guard counts resident memory; this stops what would reserve the machine's."""


class Run:
    """One parser, its folder, its guard and its tally."""

    def __init__(self, parser: Parser, folder: Path, keep: Path) -> None:
        self.parser, self.keep = parser, keep
        self.seeds, self.target = parser.prepare(folder)
        self.guard = Guard(folder.resolve())
        self.guard.install()
        warnings.simplefilter("error", RuntimeWarning)  # a line on the terminal that nobody meant to write
        for seed in self.seeds:  # the first use imports modules and fills caches
            sentence = attack(self.target, seed)
            assert sentence is None, f"the valid file is refused: {sentence}"
        self.inputs = self.refused = 0
        self.kinds: set[str] = set()
        self.findings: dict[str, str] = {}

    def tried(self, data: bytes) -> None:
        """One input; a finding is kept, once for each kind and place."""
        self.inputs += 1
        try:
            with self.guard.watch(self.parser.seconds):
                sentence = attack(self.target, data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._found(error, data)
            return
        if sentence is not None:
            self.refused += 1
            self.kinds.add(re.sub(r"'[^']*'|\"[^\"]*\"|\d+|\S*/\S*", "…", sentence)[:120])

    def _found(self, error: BaseException, data: bytes) -> None:
        kind = f"{type(error).__name__}: {str(error)[:200]} {_place(error)}"
        key = re.sub(r"\d+|'[^']*'", "…", f"{type(error).__name__} {_place(error)} {str(error)[:40]}")
        if key in self.findings or len(self.findings) >= MAX_FINDINGS:
            return
        self.keep.mkdir(parents=True, exist_ok=True)
        path = self.keep / f"{self.parser.name}-{len(self.findings)}"
        path.write_bytes(data)
        self.findings[key] = f"{kind} [{path}]"
        print(f"{self.parser.name}: {kind} [{path}]", file=sys.stderr, flush=True)

    def told(self, seconds: float) -> str:
        """The tally as one JSON line."""
        return json.dumps({
            "parser": self.parser.name, "inputs": self.inputs, "refused": self.refused,
            "accepted": self.inputs - self.refused - len(self.findings), "sentences": len(self.kinds),
            "seconds": round(seconds, 1), "peak_mib": self.guard.highest >> 20,
            "findings": list(self.findings.values()),
        })  # fmt: skip


def _place(error: BaseException) -> str:
    """Where it was raised: the innermost frame of ours, and the innermost of all."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    ours = [frame for frame in frames if "/edgekit/" in frame[0]] or frames
    return " ".join(f"{Path(file).name}:{line}" for file, line in (ours[-1], frames[-1]))


@contextmanager
def opened(name: str, keep: Path) -> Iterator[Run]:
    """A run in a folder that is removed afterwards."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix="edgekit-fuzz-") as folder:
        yield Run(PARSERS[name], Path(folder), keep)


def damaged(run: Run, random: Random) -> bytes:
    """A valid file, changed once; one in four changed again."""
    data = run.parser.mutate(random.choice(run.seeds), random)
    while random.random() < 0.25:
        data = run.parser.mutate(data, random)
    return data[:MAX_INPUT]


def counted(run: Run, count: int, seed: int) -> float:
    """`count` inputs drawn from `seed`; seconds taken. The last input survives a crash of the process, in `keep`."""
    start = time.monotonic()
    last = run.keep / f"{run.parser.name}-last"
    run.keep.mkdir(parents=True, exist_ok=True)
    with last.open("wb", buffering=0) as stream:
        for index in range(count):
            data = damaged(run, Random(f"{seed} {index}"))
            stream.seek(0)
            stream.truncate()
            stream.write(data)
            run.tried(data)
    last.unlink(missing_ok=True)  # another run may keep its inputs here
    return time.monotonic() - start


def guided(name: str, keep: Path, seconds: int, seed: int) -> None:
    """atheris: inputs that reach new code are kept and changed further. Needs `pip install 'edgekit[fuzz]'`."""
    import atheris

    with opened(name, keep) as run, tempfile.TemporaryDirectory(prefix="edgekit-corpus-") as corpus:
        for index, sample in enumerate(run.seeds):
            (Path(corpus) / str(index)).write_bytes(sample)
        start = time.monotonic()

        def one(data: bytes) -> None:
            run.tried(data)
            if time.monotonic() - start > seconds:
                print(run.told(time.monotonic() - start), flush=True)
                os._exit(1 if run.findings else 0)

        def mutate(data: bytes, max_size: int, number: int) -> Any:
            random = Random(number)
            if random.random() < 0.3:
                return atheris.Mutate(data, max_size)
            return run.parser.mutate(data, random)[:max_size]

        options = [corpus, f"-seed={seed + 1}", "-max_len=65536", "-rss_limit_mb=0", "-timeout=60", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
        atheris.Fuzz()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parser", choices=["all", *PARSERS])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=int, help="run atheris for so long instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "edgekit-fuzz", help="for findings")
    parser.add_argument("--replay", type=Path, help="try this one input, with its traceback")
    given = parser.parse_args()
    if given.parser == "all":
        return max([_apart(name, given) for name in PARSERS])
    return _one(given)


def _apart(name: str, given: argparse.Namespace) -> int:
    """One parser in a child process, which may crash: modules are imported once for all."""
    given.parser = name
    if (child := os.fork()) == 0:
        code = 1
        try:
            code = _one(given)
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        last = given.keep / f"{name}-last"
        print(json.dumps({"parser": name, "findings": [f"killed by signal {-status} [{last}]"]}), flush=True)
    return abs(status)


def _one(given: argparse.Namespace) -> int:
    if given.seconds:
        guided(given.parser, given.keep, given.seconds, given.seed)
        return 0
    with opened(given.parser, given.keep) as run:
        if given.replay:
            with run.guard.watch(run.parser.seconds):
                print(attack(run.target, given.replay.read_bytes()))
            return 0
        print(run.told(counted(run, given.count, given.seed)))
        return 1 if run.findings else 0


if __name__ == "__main__":
    sys.exit(main())
