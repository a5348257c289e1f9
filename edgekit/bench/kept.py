"""Results that were measured but do not yet stand where the user wants them, kept in the cache meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgekit import cache
from edgekit.bench.baseline import digest
from edgekit.bench.result import BenchResult, to_json
from edgekit.errors import InterruptError, OutputError
from edgekit.files import cache_dir, whole_file
from edgekit.progress import Progress


@dataclass
class Keeper:
    """Keeps results; several threads may do so at once."""

    progress: Progress
    paths: list[Path] = field(default_factory=list)
    """Of what is kept now."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, result: BenchResult) -> None:
        """Write a result into the cache; where that cannot be done the user is told, and the work goes on."""
        path = cache_dir() / cache.MEASUREMENTS / f"result-{digest(result)[:16]}" / "bench.json"
        try:
            with whole_file(path, force=True) as fresh:
                fresh.write_bytes(to_json(result))
        except (OutputError, OSError) as error:
            self.progress.note(f"the result is not kept in the cache until it is written ({error})")
            return
        with self._lock:
            self.paths.append(path)

    def forget(self) -> None:
        """Remove what was kept: it was written where the user wants it."""
        with self._lock:
            for path in self.paths:
                path.unlink(missing_ok=True)
                with suppress(OSError):
                    path.parent.rmdir()
            self.paths.clear()

    @contextmanager
    def named(self) -> Iterator[None]:
        """When the block is interrupted, say where the results that were measured already are."""
        try:
            yield
        except (KeyboardInterrupt, InterruptError):
            if self.paths:
                there = ", ".join(map(str, self.paths))
                self.progress.note(f"what was measured is kept in {there}, which `edgekit report` takes")
            raise
