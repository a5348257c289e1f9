"""ggml's own quantizers, called in the `libggml-base` that llama-cpp-python ships.

The library is found and loaded without importing `llama_cpp`, and only when a tensor is quantized.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import MissingDependencyError
from edgekit.grids.base import F32
from edgekit.grids.ggml_types import GgmlType
from edgekit.grids.parallel import each_chunk

U8 = NDArray[np.uint8]

_REMEDY = "install it with: pip install 'edgekit[gguf]'"
_CHUNK = 1 << 16
"""Weights quantized by one call: small enough to share out a matrix, large enough to hide the call."""


class _TypeTraits(ctypes.Structure):
    """The head of `struct ggml_type_traits` (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def library_path() -> Path:
    """Where llama-cpp-python keeps `libggml-base`.

    Raises:
        MissingDependencyError: the package or the library in it is absent.
    """
    spec = importlib.util.find_spec("llama_cpp")
    for place in spec.submodule_search_locations or () if spec else ():
        for name in ("libggml-base.so", "libggml-base.dylib"):
            if (path := Path(place, "lib", name)).is_file():
                return path
    raise MissingDependencyError("libggml-base, which quantizes GGUF types, is not installed", remedy=_REMEDY)


@cache
def _library() -> ctypes.CDLL:
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_quantize_chunk.argtypes = (
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
        )
        library.ggml_quantize_init.restype = None
        library.ggml_quantize_init.argtypes = (ctypes.c_int,)
        library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
        library.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    except (OSError, AttributeError) as error:
        raise MissingDependencyError(f"{path} cannot be used ({error})", remedy=_REMEDY) from error
    return library


@cache
def _traits(kind: GgmlType) -> _TypeTraits:
    """What ggml knows about a type, after comparing them with ours: another build may number types differently."""
    traits: _TypeTraits = _library().ggml_get_type_traits(kind.id).contents
    found = (bytes(traits.type_name or b"").decode().upper(), traits.blck_size, traits.type_size)
    expected = (kind.name.upper(), kind.block, kind.block_bytes)
    if found != expected:
        raise MissingDependencyError(
            f"the installed ggml says that type {kind.id} is {found[0]} with {found[2]} bytes for {found[1]} weights",
            expected=f"{expected[0]} with {expected[2]} bytes for {expected[1]} weights",
            remedy=_REMEDY,
        )
    return traits


def quantize(kind: GgmlType, weights: F32, importance: F32) -> U8:
    """Blocks of `kind` as bytes (rows, bytes per row) by `ggml_quantize_chunk`, row chunks over all processors.

    Args:
        kind: the type; its block must divide the columns.
        weights: (rows, columns), contiguous, finite.
        importance: (columns,), positive.

    Raises:
        MissingDependencyError: ggml is absent, or of a revision that numbers its types differently.
    """
    rows, columns = weights.shape
    _traits(kind)
    library = _library()
    library.ggml_quantize_init(kind.id)
    out = np.zeros((rows, columns // kind.block * kind.block_bytes), np.uint8)
    importance = np.ascontiguousarray(importance, np.float32)

    def work(rows: slice) -> None:
        source, target = weights[rows], out[rows]
        library.ggml_quantize_chunk(
            kind.id, source.ctypes.data, target.ctypes.data, 0, len(source), columns, importance.ctypes.data
        )

    each_chunk(rows, max(1, _CHUNK // columns), work)
    return out


def to_float(kind: GgmlType, data: U8) -> F32:
    """Weights (n,) of whole blocks given as bytes, by ggml's own `to_float`: what llama.cpp sees in a file.

    Raises:
        MissingDependencyError: as :func:`quantize`.
    """
    source = np.ascontiguousarray(data, np.uint8)
    out = np.zeros(source.size // kind.block_bytes * kind.block, np.float32)
    _traits(kind).to_float(source.ctypes.data, out.ctypes.data, out.size)
    return out
