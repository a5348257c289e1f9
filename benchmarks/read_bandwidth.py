"""Our read bandwidth test against a loop in C: `python -m benchmarks.read_bandwidth`. Needs a C compiler (`cc`)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks._measure import begin, pairs, parser, versions
from benchmarks._result import Limit, Row
from edgekit.machine import cores

SIZE = 256 << 20
RUNS = 7
METHOD = (
    "GB/s, 10**9 bytes a second: the median of 7 passes over a buffer of 256 MiB in huge pages, each side in processes"
    " of its own, from the start of the first thread to the end of the last."
)
SOURCE = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
static size_t words; static uint64_t *buffer, total[256]; static int threads; static double begins[256], ends[256];
static pthread_barrier_t ready;
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
static void *sum(void *given) {
    size_t number = (size_t)given, part = words / threads / 4 * 4; uint64_t *at = buffer + number * part;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    pthread_barrier_wait(&ready);
    begins[number] = now();
    for (size_t i = 0; i < part; i += 4) { a += at[i]; b += at[i + 1]; c += at[i + 2]; d += at[i + 3]; }
    ends[number] = now();
    total[number] += a + b + c + d;
    return 0;
}
int main(int count, char **given) {
    (void)count; words = strtoull(given[1], 0, 10) / 8; threads = atoi(given[2]);
    int runs = atoi(given[3]); pthread_t thread[256];
    buffer = aligned_alloc(1 << 21, words * 8); madvise(buffer, words * 8, MADV_HUGEPAGE); memset(buffer, 1, words * 8);
    for (int run = 0; run <= runs; run++) {
        double begin = 1e300, end = 0;
        pthread_barrier_init(&ready, 0, threads);
        for (size_t i = 0; i < (size_t)threads; i++) pthread_create(thread + i, 0, sum, (void *)i);
        for (int i = 0; i < threads; i++) {
            pthread_join(thread[i], 0);
            if (begins[i] < begin) begin = begins[i];
            if (ends[i] > end) end = ends[i];
        }
        if (run) printf("%.9f\n", end - begin);
    }
    for (int i = 1; i < threads; i++) total[0] += total[i];
    fprintf(stderr, "%lu\n", (unsigned long)total[0]);
}
"""
OURS = """
from edgekit.bench.bandwidth import read_bandwidth
print(read_bandwidth([{}], runs={}, buffer_bytes={}).points[0].gbps)
"""


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser(__doc__, pairs_default=20).parse_args(arguments)
    session = begin("read_bandwidth", arguments)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "read")
        Path(folder, "read.c").write_text(SOURCE, encoding="ascii")
        subprocess.run(["cc", "-O3", "-march=native", "-o", program, f"{program}.c", "-lpthread"], check=True)
        rows = [_row(program, threads, options.pairs, options.warmup) for threads in range(1, cores() + 1)]
    session.finish(rows, versions("edgekit", "numpy"), METHOD, options.json)


def _row(program: Path, threads: int, count: int, warmup: int) -> Row:
    found = pairs(lambda: _ours(threads), lambda: _theirs(program, threads), count, warmup)
    return Row(
        title=f"reading with {threads} thread{'s' * (threads > 1)}", peer="sum of 64-bit words in C", unit="GB/s",
        ours=tuple(own for own, _ in found), peers=tuple(other for _, other in found),
        limit=Limit(measure="ratio_at_least", value=0.9),
    )  # fmt: skip


def _ours(threads: int) -> float:
    return float(_said([sys.executable, "-c", OURS.format(threads, RUNS, SIZE)])[0])


def _theirs(program: Path, threads: int) -> float:
    seconds = sorted(float(line) for line in _said([str(program), str(SIZE), str(threads), str(RUNS)]))
    return SIZE / seconds[len(seconds) // 2] / 1e9


def _said(command: list[str]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


if __name__ == "__main__":
    main(sys.argv[1:])
