"""Debian's gcc for 64-bit ARM.

It links against the distribution's C library, so its shared libraries start on that release and newer ones only; the
tools have it inside and start anywhere.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from edgekit.crossbuild import cpu_features
from edgekit.crossbuild.model import TRIPLE, Cpu, Setup, numbers
from edgekit.crossbuild.places import write
from edgekit.errors import MissingDependencyError, ToolchainError

OLDEST = 10
"""First release that knows the Cortex-A78."""
PACKAGE = "crossbuild-essential-arm64"
_TOOLCHAIN_FILE = """\
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER {triple}-gcc)
set(CMAKE_CXX_COMPILER {triple}-g++)
set(CMAKE_C_FLAGS_INIT "{flags}")
set(CMAKE_CXX_FLAGS_INIT "{flags}")
set(CMAKE_ASM_FLAGS_INIT "{flags}")
# Nothing of this machine belongs into a board's program.
set(CMAKE_FIND_ROOT_PATH /usr/{triple})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
"""
_DOCS = Path("/usr/share/doc")


@dataclass(frozen=True)
class Gcc:
    """See :class:`edgekit.crossbuild.model.Toolchain`."""

    name: str = "gcc"
    triple: str = TRIPLE

    def version(self) -> str:
        """See Toolchain.version; names the C library too, as it decides where the result starts."""
        for program in (f"{self.triple}-gcc", f"{self.triple}-g++"):
            if which(program) is None:
                raise MissingDependencyError(
                    f"the cross-compiler {program} is not installed here", remedy=f"apt install {PACKAGE}"
                )
        found = self._said(["-dumpfullversion"]).strip()
        if not re.fullmatch(r"\d+(\.\d+)*", found) or numbers(found)[0] < OLDEST:
            raise ToolchainError(
                f"{self.triple}-gcc is version {found or 'unknown'}",
                expected=f"{OLDEST} or newer",
                remedy=f"apt install {PACKAGE} of a newer release, or take --toolchain zig",
            )
        return f"{found} (glibc {self.glibc()})"

    def glibc(self) -> str:
        """Version of the C library that it links against."""
        macros = self._said(["-E", "-dM", "-x", "c", "-"], given="#include <features.h>\n")
        major, minor = (re.search(rf"^#define __GLIBC{part}__ (\d+)$", macros, re.MULTILINE) for part in ("", "_MINOR"))
        if major is None or minor is None:
            raise ToolchainError(
                f"{self.triple}-gcc finds no C library", expected="glibc's headers", remedy=f"apt install {PACKAGE}"
            )
        return f"{major[1]}.{minor[1]}"

    def setup(self, cpu: Cpu, folder: Path) -> Setup:
        """See Toolchain.setup."""
        # Otherwise gcc inlines no function that a library exports, although nobody replaces it: clang's default.
        flags = (f"-march={cpu.march}", *([f"-mtune={cpu.mtune}"] if cpu.mtune else []), "-fno-semantic-interposition")
        macros = self._said([*flags, "-E", "-dM", "-x", "c", os.devnull], cpu=cpu)
        cpu_features.check(macros, cpu, compiler="gcc", needed=cpu_features.asked(cpu.march))
        text = _TOOLCHAIN_FILE.format(triple=self.triple, flags=" ".join(flags))
        toolchain = write(folder / "toolchain.cmake", text)
        licences = {
            "libstdc++": next(_DOCS.glob("gcc-*-cross-base/copyright"), _DOCS),
            "glibc": _DOCS / "libc6-arm64-cross" / "copyright",
        }
        return Setup(
            definitions=(f"-DCMAKE_TOOLCHAIN_FILE={toolchain}",),
            flags=flags,
            glibc=self.glibc(),
            static_tools=True,
            licences={name: path for name, path in licences.items() if path.is_file()},
        )

    def _said(self, arguments: Sequence[str], given: str = "", cpu: Cpu | None = None) -> str:
        command = [f"{self.triple}-gcc", *arguments]
        said = subprocess.run(  # noqa: S603
            command, input=given, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
        )
        if said.returncode == 0:
            return said.stdout
        line = next((line for line in said.stderr.splitlines() if "error" in line), "it said nothing")
        what = f" for {cpu.march} and {cpu.mtune}" if cpu else ""
        raise ToolchainError(
            f"{self.triple}-gcc does not compile{what} ({line.strip()})",
            expected="an architecture and a core that it knows",
            remedy="correct toolchain.march and mtune in the target file, or take --toolchain zig",
        )
