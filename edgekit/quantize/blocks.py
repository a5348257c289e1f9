"""Calibration text on its way through a model's transformer blocks, one block at a time.

Only the hidden states of the text and the block at hand are in use, whatever the model's depth: 4 bytes × tokens ×
hidden size beside the weights. Each block sees what the *rounded* blocks before it give, so that rounding it makes up
for their errors as far as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from edgekit.checkpoint.spec import Spec
from edgekit.engines.base import F32, Ids
from edgekit.errors import BadWeightsError, UnknownArchitectureError
from edgekit.quantize.processor import bfloat16

Kwargs = dict[str, Any]


class _EnoughError(Exception):
    """Ends a forward pass as soon as what it was for is known."""


class Blocks:
    """The transformer blocks of a Hugging Face causal language model.

    Args:
        model: in evaluation mode, float32; its weights are put back after every change.
        spec: its description.
        sequences: token ids (T,) each.

    Raises:
        UnknownArchitectureError: the module has no list of blocks where the tensors' names say.
    """

    def __init__(self, model: Any, spec: Spec, sequences: Sequence[Ids]) -> None:
        self._model, self._spec = model, spec
        self._stem, self._layers = _layers(model, spec)
        self._arguments: dict[int, list[tuple[tuple[Any, ...], Kwargs]]] = {}
        self._states: list[torch.Tensor] = [self._enter(ids) for ids in sequences]
        self.count = len(self._layers)

    def _enter(self, ids: Ids) -> torch.Tensor:
        """Hidden states (1, T, hidden) before the first block; notes what each block is called with at this length."""
        entering: list[torch.Tensor] = []
        noted: list[tuple[tuple[Any, ...], Kwargs]] = []
        known = len(ids) in self._arguments

        def note(_module: Any, arguments: tuple[Any, ...], keywords: Kwargs) -> None:
            states, rest, others = _split(arguments, keywords)
            entering.append(states)
            noted.append((rest, others))
            if known:
                raise _EnoughError

        with _hooks([layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self._layers]):
            _until_enough(lambda: self._model(torch.as_tensor(ids)[None], use_cache=False))
        if not known:
            self._arguments[len(ids)] = noted
        return entering[0].clone()

    def groups(self, layer: int) -> list[list[str]]:
        """Names of the block's linear weights, those that read the same input together, in order of execution."""
        modules = self._linear(layer)
        groups: list[tuple[torch.Tensor, list[str]]] = []

        def listen(name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
            def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
                if groups and groups[-1][0] is inputs[0]:
                    groups[-1][1].append(name)
                else:
                    groups.append((inputs[0], [name]))

            return hook

        with _hooks([module.register_forward_pre_hook(listen(name)) for name, module in modules.items()]):
            self._forward(layer, self._states[0])
        return [names for _, names in groups]

    def inputs(self, layer: int, name: str) -> torch.Tensor:
        """What the linear layer `name` reads, (tokens, inputs) of all sequences, with the block as it is.

        Raises:
            BadWeightsError: an activation is NaN or infinite; names the layer.
        """
        rows = _Rows(sum(states.shape[1] for states in self._states))
        with _hooks([self._linear(layer)[name].register_forward_pre_hook(rows.hook)]):
            for states in self._states:
                _until_enough(lambda states=states: self._forward(layer, states))  # type: ignore[misc]
        return rows.finite(name)

    def put(self, layer: int, name: str, weights: F32) -> None:
        """Let the block compute with other weights (outputs, inputs), until :meth:`advance` has used them."""
        module = self._linear(layer)[name]
        with torch.no_grad():
            array = torch.from_numpy(np.ascontiguousarray(weights))
            module.weight.copy_(array.t() if _transposed(module) else array)

    def outputs(self, layer: int) -> list[torch.Tensor]:
        """What the block as it is makes of each sequence, (1, T, hidden)."""
        return [self._forward(layer, states) for states in self._states]

    def output(self, layer: int, number: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the block makes of one sequence with other weights (outputs, inputs), through which gradients pass.

        Matrices are multiplied in bfloat16 where the processor has it: twice as fast, and gradients bear it.
        """
        modules = self._linear(layer)
        turned = {
            name.removeprefix(f"{self._stem}.{layer}."): tensor.t() if _transposed(modules[name]) else tensor
            for name, tensor in weights.items()
        }
        states = self._states[number]
        rest, keywords = self._arguments[states.shape[1]][layer]
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16()):
            out = torch.func.functional_call(self._layers[layer], turned, (states, *rest), keywords)
        given: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return given

    def advance(self, layer: int) -> list[torch.Tensor]:
        """Take the text through the block as it is; its outputs, (1, T, hidden) each, are the next block's inputs."""
        self._states = [self._forward(layer, states) for states in self._states]
        return self._states

    @contextmanager
    def borrowed(self, layer: int) -> Iterator[None]:
        """Put the block's own weights back at the end."""
        own = {name: module.weight.detach().clone() for name, module in self._linear(layer).items()}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, module in self._linear(layer).items():
                    module.weight.copy_(own[name])

    def _linear(self, layer: int) -> dict[str, Any]:
        """Parameter name → module of the block's matrices."""
        modules = dict(self._model.named_modules())
        names = [t.hf for t in self._spec.tensors if t.layer == layer and t.rule.kind == "linear"]
        return {name: modules[name.removesuffix(".weight")] for name in names}

    @torch.no_grad()
    def _forward(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        rest, keywords = self._arguments[states.shape[1]][layer]
        out = self._layers[layer](states, *rest, **keywords)
        given: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return given


def inputs_of(model: Any, name: str, sequences: Sequence[Ids]) -> torch.Tensor:
    """What the linear layer `name` reads, (tokens, inputs) of all sequences, in a whole pass of the model.

    Raises:
        BadWeightsError: an activation is NaN or infinite.
    """
    module = dict(model.named_modules())[name.removesuffix(".weight")]
    rows = _Rows(sum(map(len, sequences)))
    with _hooks([module.register_forward_pre_hook(rows.hook)]):
        for ids in sequences:
            _until_enough(lambda ids=ids: model(torch.as_tensor(ids)[None], use_cache=False))  # type: ignore[misc]
    return rows.finite(name)


class _Rows:
    """What a layer reads, gathered in place: the parts and the whole beside each other would be twice the memory."""

    def __init__(self, tokens: int) -> None:
        self._tokens, self._done = tokens, 0

    _whole: torch.Tensor

    def hook(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        """Take the rows of one sequence, and end its pass."""
        rows = inputs[0].flatten(0, -2)
        if not self._done:
            self._whole = torch.empty(self._tokens, rows.shape[1])
        self._whole[self._done : self._done + len(rows)] = rows
        self._done += len(rows)
        raise _EnoughError

    def finite(self, name: str) -> torch.Tensor:
        """(tokens, inputs) of all sequences.

        Raises:
            BadWeightsError: an activation is NaN or infinite; names the layer.
        """
        if not bool(torch.isfinite(self._whole).all()):
            raise BadWeightsError(
                f"the inputs of {name} hold NaN or infinity on the calibration text",
                expected="finite activations",
                remedy="calibrate with another text, or use an earlier checkpoint",
            )
        return self._whole


def _split(arguments: tuple[Any, ...], keywords: Kwargs) -> tuple[torch.Tensor, tuple[Any, ...], Kwargs]:
    """Hidden states, and what else a block is called with."""
    if arguments:
        return arguments[0], arguments[1:], keywords
    rest = dict(keywords)
    return rest.pop("hidden_states"), (), rest


def _layers(model: Any, spec: Spec) -> tuple[str, Any]:
    """The list of blocks, and its name."""
    name = next(t.rule.hf for t in spec.tensors if t.layer is not None).split("{i}")[0].rstrip(".")
    modules = dict(model.named_modules())
    found = modules.get(name)
    if not isinstance(found, torch.nn.ModuleList) or len(found) != spec.layers:
        raise UnknownArchitectureError(
            f"the model has no list of {spec.layers} blocks at {name}",
            expected="blocks where the tensors' names say",
            remedy="build with --effort fast",
        )
    return name, found


def _transposed(module: Any) -> bool:
    """Whether the module keeps its weight as (inputs, outputs), as GPT-2's does."""
    return not isinstance(module, torch.nn.Linear)


@contextmanager
def _hooks(hooks: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _until_enough(run: Callable[[], Any]) -> None:
    try:
        with torch.no_grad():
            run()
    except _EnoughError:
        pass
