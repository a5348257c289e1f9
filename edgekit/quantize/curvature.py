"""How much each token's error in a layer's output matters to what the model says.

A change Δy of a layer's output at one token changes the log-likelihood by g·Δy, g its gradient there. For text drawn
from the model's own distribution the KL divergence that a small change causes is half its Fisher quadratic form; that
token's part of it is E[(g·Δy)²]. Rounding with the second moment E[‖g‖² x xᵀ] instead of E[x xᵀ] therefore lowers what
is measured in the end, the KL divergence, and not just the error of each layer's output (GuidedQuant,
arXiv:2505.07004, with one weight a token). It matters most where a few tokens have huge activations that hardly count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from edgekit.engines.base import F32, Ids
from edgekit.errors import BadWeightsError
from edgekit.machine import give_memory_back
from edgekit.progress import Advance
from edgekit.quantize.processor import bfloat16

Weights = dict[str, F32]
"""Parameter name → one weight for each token of all sequences, one behind the other, of mean 1."""


def token_weights(model: Any, names: Sequence[str], sequences: Sequence[Ids], seed: int, progress: Advance) -> Weights:
    """‖g‖² of each token at each layer's output, divided by the layer's mean.

    Labels are drawn from the model's own predictions (the true Fisher, not the empirical one).

    Args:
        model: a Hugging Face causal language model, float32.
        names: parameter names of linear layers.
        sequences: token ids (T,) each.
        seed: of the labels.
        progress: called after every sequence.

    Raises:
        BadWeightsError: a gradient is NaN or infinite; names the layer.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def listen(name: str) -> Callable[[Any, Any, tuple[torch.Tensor, ...]], None]:
        def hook(_module: Any, _inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
            found[name].append(outputs[0].float().flatten(0, -2).square().sum(dim=1))

        return hook

    hooks = [modules[name.removesuffix(".weight")].register_full_backward_hook(listen(name)) for name in names]
    needed = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in needed:
            parameter.requires_grad_(False)
        for done, ids in enumerate(sequences, 1):
            _backward(model, ids, generator)
            give_memory_back()  # what logits and gradients leave in the heap grows with every sequence otherwise
            progress(done, len(sequences))
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, before in needed.items():
            parameter.requires_grad_(before)
    return {name: _normalized(name, torch.cat(parts)) for name, parts in found.items()}


def _backward(model: Any, ids: Ids, generator: torch.Generator) -> None:
    embedded = model.get_input_embeddings()(torch.as_tensor(ids)[None]).detach().requires_grad_(True)
    # In bfloat16 where the processor has it: nearly twice as fast, and less of a difference than other labels make.
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16()):
        logits = model(inputs_embeds=embedded, use_cache=False).logits[0].float()
        chances = torch.softmax(logits.detach().double(), dim=-1)
        labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        torch.autograd.backward(loss)


def _normalized(name: str, weights: torch.Tensor) -> F32:
    mean = weights.double().mean()
    if not bool(torch.isfinite(mean)):
        raise BadWeightsError(
            f"the gradient at {name} is NaN or infinite on the calibration text",
            remedy="calibrate with another text, or build with --effort fast",
        )
    if mean == 0:  # nothing reaches the output: every token counts the same
        return np.ones(len(weights), np.float32)
    scaled: F32 = (weights.double() / mean).float().numpy()
    return scaled
