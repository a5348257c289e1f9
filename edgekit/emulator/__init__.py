"""Boards without boards: an arm64 system that is reached over ssh, on the CPU that a target names.

Everything measured here is *emulated*: right for correctness, instruction sets and regressions, never a board's speed.
"""

from edgekit.emulator.board import Board, emulated
from edgekit.emulator.machine import whole_board

__all__ = ["Board", "emulated", "whole_board"]
