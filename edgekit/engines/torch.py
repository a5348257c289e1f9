"""The full-precision original in PyTorch, in float32 on the CPU. Host only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.engines.base import F32, Ids
from edgekit.errors import BadWeightsError
from edgekit.machine import require_room
from edgekit.progress import Advance

_LIBRARIES_MIB = 384
"""Address space that transformers and what it loads take after PyTorch (210 MiB measured), and OpenBLAS's threads."""


def _refuse_infinite(name: str, weights: torch.Tensor) -> None:
    if not bool(torch.isfinite(weights).all()):
        count = int((~torch.isfinite(weights)).sum())
        raise BadWeightsError(
            f"tensor {name} holds {count} NaN or infinite values",
            expected="finite weights",
            remedy="the checkpoint is broken: use an earlier one",
        )


class TorchEngine:
    """A Hugging Face causal language model; its weights can be replaced to see what a quantized model should say.

    Raises:
        BadWeightsError: a tensor holds NaN or infinity.
    """

    name = "torch"

    def __init__(self, folder: Path, *, context: int = 4096) -> None:
        require_room(_LIBRARIES_MIB)
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).eval()
        self.vocab_size = int(self._model.config.vocab_size)
        self.max_context = min(context, int(getattr(self._model.config, "max_position_embeddings", context)))
        self._cache: Any = None
        self._named = dict(self._model.named_parameters(remove_duplicate=False))
        for name, weights in self._named.items():
            _refuse_infinite(name, weights)

    def replace(self, weights: Iterable[tuple[str, F32]]) -> None:
        """Overwrite parameters by Hugging Face name, in their stored shape; a tied head follows its embedding."""
        with torch.no_grad():
            for name, array in weights:
                if self._named[name].shape != array.shape:  # copy_ would broadcast
                    raise ValueError(f"{name} has shape {tuple(self._named[name].shape)}, not {array.shape}")
                self._named[name].copy_(torch.from_numpy(np.ascontiguousarray(array)))

    @property
    def module(self) -> Any:
        """The Hugging Face model itself, for calibration; who changes its weights puts them back."""
        return self._model

    def layers(self) -> frozenset[str]:
        """Names of the weights (outputs, inputs) that one module multiplies its input by."""
        linear = {name for name, module in self._model.named_modules() if isinstance(module, torch.nn.Linear)}
        return frozenset(f"{name}.weight" for name in linear)

    def output_layer(self) -> str | None:
        """Name of the weight that makes the logits; None when the model has no such layer."""
        head = self._model.get_output_embeddings()
        return next((f"{name}.weight" for name, module in self._model.named_modules() if module is head), None)

    @torch.inference_mode()
    def logits(self, ids: Ids) -> F32:
        """See Engine.logits."""
        out: F32 = self._model(torch.as_tensor(ids)[None], use_cache=False).logits[0].float().numpy()
        return out

    @torch.inference_mode()
    def states(self, ids: Ids) -> list[F32]:
        """Hidden states (T, features): what enters the first block, then what each gives, the last behind the norm."""
        found = self._model(torch.as_tensor(ids)[None], use_cache=False, output_hidden_states=True).hidden_states
        return [layer[0].float().numpy() for layer in found]

    @torch.inference_mode()
    def record(self, ids: Ids, stack: str) -> tuple[F32, list[Any]]:
        """Logits (T, V), and what each layer of the module list `stack` gave, for :meth:`logits_from`."""
        given: list[Any] = []
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, output: given.append(output))
            for layer in self._model.get_submodule(stack)
        ]
        try:
            return self.logits(ids), given
        finally:
            for hook in hooks:
                hook.remove()

    @torch.inference_mode()
    def logits_from(self, ids: Ids, stack: str, given: Sequence[Any], first: int) -> F32:
        """Logits (T, V) when only layer `first` of `stack` and what follows it has changed since :meth:`record`."""
        replaced = list(self._model.get_submodule(stack))[:first]
        for layer, output in zip(replaced, given, strict=False):
            layer.forward = lambda *_inputs, output=output, **_named: output
        try:
            return self.logits(ids)
        finally:
            for layer in replaced:
                del layer.forward

    @torch.inference_mode()
    def logits_batch(self, sequences: Sequence[Ids]) -> list[F32]:
        """See Batching.logits_batch; shorter sequences are padded at their end, which nothing before it sees."""
        lengths = [len(ids) for ids in sequences]
        ids = torch.zeros((len(sequences), max(lengths)), dtype=torch.long)
        for row, own in zip(ids, sequences, strict=True):
            row[: len(own)] = torch.as_tensor(own)
        out = self._model(ids, use_cache=False).logits.float().numpy()
        return [rows[:length] for rows, length in zip(out, lengths, strict=True)]

    @torch.inference_mode()
    def start(self, ids: Ids) -> F32:
        """See Engine.start."""
        self._cache = None
        row: F32 = self._forward(torch.as_tensor(ids)[None])[0]
        return row

    @torch.inference_mode()
    def step(self, token: int) -> F32:
        """See Engine.step."""
        row: F32 = self._forward(torch.tensor([[token]]))[0]
        return row

    def _forward(self, ids: torch.Tensor) -> F32:
        out = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values
        last: F32 = out.logits[:, -1].float().numpy()
        return last

    @torch.inference_mode()
    def sample_batch(self, first: Sequence[int], length: int, seed: int, progress: Advance) -> NDArray[np.int64]:
        """Sample one sequence per first token from the model itself (temperature 1, whole vocabulary).

        Args:
            first: the first token of each sequence.
            length: tokens of each sequence, the first included.
            seed: of the generator; the same seed, machine and thread count give the same text.
            progress: called after every step.

        Returns:
            Token ids (len(first), length).
        """
        generator = torch.Generator().manual_seed(seed)
        tokens = [torch.tensor(first)]
        self._cache = None
        for done in range(1, length):
            row = torch.from_numpy(self._forward(tokens[-1][:, None]))
            tokens.append(torch.multinomial(torch.softmax(row.double(), dim=-1), 1, generator=generator)[:, 0])
            progress(done, length - 1)
        self._cache = None
        return torch.stack(tokens, dim=1).numpy()

    @torch.inference_mode()
    def greedy_batch(
        self, prompts: Sequence[Sequence[int]], limit: int, stop: frozenset[int], progress: Advance
    ) -> list[list[int]]:
        """Greedy continuations of all prompts at once (padded on the left), each at most `limit` tokens.

        A token of `stop` is kept as the continuation's last one, as in :func:`edgekit.engines.base.greedy`.
        """
        width = max(map(len, prompts))
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        made: list[list[int]] = [[] for _ in prompts]
        running, cache = set(range(len(prompts))), None
        for done in range(1, limit + 1):
            places = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            out = self._model(
                ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache, ids = out.past_key_values, out.logits[:, -1].argmax(dim=-1)[:, None]
            for index in list(running):
                made[index].append(int(ids[index, 0]))
                if made[index][-1] in stop:
                    running.discard(index)
            progress(done, limit)
            if not running:
                break
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        return made

    @torch.inference_mode()
    def input_squares(self, weights: Sequence[str], sequences: Sequence[Ids], progress: Advance) -> dict[str, F32]:
        """Mean square of each input of the named linear layers over all tokens of `sequences`.

        Args:
            weights: parameter names, "….weight".
            sequences: token ids (T,) each.
            progress: called after every sequence.

        Returns:
            Parameter name → (inputs,).
        """
        sums: dict[str, torch.Tensor] = {}

        def listen(name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
            def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
                square = inputs[0].double().square().flatten(0, -2).sum(dim=0)
                sums[name] = sums[name] + square if name in sums else square

            return hook

        modules = dict(self._model.named_modules())
        hooks = [modules[name.removesuffix(".weight")].register_forward_pre_hook(listen(name)) for name in weights]
        try:
            for done, ids in enumerate(sequences, 1):
                self._model(torch.as_tensor(ids)[None], use_cache=False)
                progress(done, len(sequences))
        finally:
            for hook in hooks:
                hook.remove()
        count = sum(len(ids) for ids in sequences)
        return {name: (total / count).float().numpy() for name, total in sums.items()}

    def close(self) -> None:
        """See Engine.close."""
        self._model = self._cache = None
        self._named = {}
