"""Number formats: weights to codes, codes to the bytes of a GGUF block or an ONNX initializer, and back."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points

from edgekit.errors import GridError
from edgekit.grids.base import Grid, Quantized
from edgekit.grids.gguf import GGUF_GRIDS
from edgekit.grids.onnx import ONNX_GRIDS, OnnxGrid
from edgekit.grids.threebit import THREE_BIT_GRIDS
from edgekit.grids.threebit_columns import SPARSE_GRIDS

__all__ = ["GRIDS", "Grid", "Quantized", "get", "loaded_nbytes", "plugins"]

GRIDS: dict[str, Grid] = {**GGUF_GRIDS, **ONNX_GRIDS, **THREE_BIT_GRIDS, **SPARSE_GRIDS}
"""The built-in grids by name."""


def plugins() -> dict[str, Grid]:
    """Grids of other packages: each entry point of the group `edgekit.grids` is one Grid object, known by its name.

    Raises:
        GridError: an entry point cannot be loaded, or its name is that of a built-in grid.
    """
    found: dict[str, Grid] = {}
    for point in entry_points(group="edgekit.grids"):
        try:
            grid: Grid = point.load()
            name = grid.name
        except Exception as error:  # a stranger's module can raise anything
            raise GridError(
                f"the number format {point.name!r} of the entry point {point.value} cannot be loaded ({error})",
                remedy="repair or uninstall the package that provides it",
            ) from error
        if name in GRIDS or name in found:
            raise GridError(
                f"the entry point {point.value} brings a second number format named {name}",
                remedy="uninstall the package that provides it",
            )
        found[name] = grid
    return found


def get(name: str) -> Grid:
    """The grid of that name, built in or from another package.

    Raises:
        GridError: none has that name; tells the nearest ones.
    """
    if grid := GRIDS.get(name):
        return grid
    known = {**GRIDS, **plugins()}
    if grid := known.get(name):
        return grid
    folded = {key.lower(): key for key in known}
    near = [folded[key] for key in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)]
    raise GridError(f"{name!r} is not a number format", expected=" or ".join(near) if near else ", ".join(known))


def loaded_nbytes(name: str, shape: tuple[int, int]) -> int:
    """Bytes of a matrix (rows, columns) in an engine's memory, which reads them all to multiply by it.

    Raises:
        GridError: as :func:`get`.
    """
    grid = get(name)
    return grid.loaded_nbytes(shape) if isinstance(grid, OnnxGrid) else grid.nbytes(shape)
