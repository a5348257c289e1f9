"""What the dispersion loss adds to a training step: `python -m benchmarks.dispersion_cost`.

One thread, forward and backward of the demo on random tokens, with cross-entropy alone and with the angular spread of
the late half beside it, in turns. Time is processor time, so that other work on the machine disturbs less. The
optimizer's step, the same on both sides, is left out: in a training the share is smaller.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks._measure import begin, pairs, parser, positive, versions
from benchmarks._result import Limit, Row
from edgekit.checkpoint.source import resolve
from edgekit.engines.torch import TorchEngine
from edgekit.training.objective import Measure
from edgekit.training.recipe import Objective

MOST = 1.03
METHOD = (
    "Processor time of a forward and backward pass, one thread, both sides on the same model, in turns; the optimizer "
    "is left out."
)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser(__doc__, pairs_default=8, warmup=1)
    options.add_argument("--batch", type=positive, default=4)
    options.add_argument("--length", type=positive, default=256)
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    module = TorchEngine(resolve(None).root).module.requires_grad_(True).train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, module.config.vocab_size, (chosen.batch, chosen.length), generator=generator)

    def timed(**parts: Any) -> float:
        measure = Measure(Objective(cross_entropy=1.0, distillation=0.0, **parts), None)
        start = time.process_time()
        measure(module, ids, generator).total.backward()  # type: ignore[no-untyped-call]
        spent = time.process_time() - start
        module.zero_grad()
        return spent

    session = begin("dispersion_cost", arguments)
    made = pairs(lambda: timed(dispersion=0.5, temperature=0.5), timed, chosen.pairs, chosen.warmup)
    ours, peers = zip(*made, strict=True)
    row = Row(
        title=f"{chosen.batch} × {chosen.length} tokens, angular spread of the late half", peer="cross-entropy alone",
        unit="s", ours=ours, peers=peers, limit=Limit(measure="ratio_at_most", value=MOST),
    )  # fmt: skip
    session.finish([row], versions("edgekit", "torch", "transformers"), METHOD, chosen.json)


if __name__ == "__main__":
    main(sys.argv[1:])
