"""Builds the one compiled library of statecheck_kernels, where there is a C++ compiler; all else is in pyproject.toml.

The library is plain C++ behind a C interface, loaded with ctypes: no Python or torch headers, one file for every Python
version. It is optional: where it can't be built, the installation succeeds without it, and
`statecheck_kernels.cpu.reason()` says so.
"""

import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

NAME = "statecheck_kernels.cpu._cpu"
CPU = Path("kernels/statecheck_kernels/cpu")
HASH = runpy.run_path(str(CPU / "source_hash.py"))["source_hash"](CPU / "src")
# No -ffast-math: loading such a library makes the whole process flush small numbers to zero. No -march: the source
# looks at the processor itself.
FLAGS = [
    *("-O2", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden", "-g0"),
    *("-Wall", "-Wno-uninitialized"),  # GCC 12 takes offence at its own AVX-512 header
]
STATIC = ["-static-libstdc++", "-static-libgcc"] if sys.platform == "linux" else []
#: (compile, link), the first that works. OpenMP is compiled in but not linked: its functions come from the library that
#: torch has loaded, so that there is one pool of threads, which torch.set_num_threads rules. Apple's clang has no
#: OpenMP, and some systems no static libstdc++.
ATTEMPTS = [(["-fopenmp"], STATIC), (["-fopenmp"], []), ([], [])]


class BuildLibrary(build_ext):
    """Name it plainly, build it anew each time (dates of files mislead, and it takes seconds), try simpler flags."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        self.force = True
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        for compile_with, link_with in ATTEMPTS:
            ext.extra_compile_args = [*FLAGS, *compile_with]
            ext.extra_link_args = link_with
            try:
                return super().build_extension(ext)
            except (CompileError, LinkError) as error:
                failed = error
        raise failed


class TagWheel(bdist_wheel):
    """With the library: any Python 3 on this platform. Without it: any platform."""

    def get_tag(self) -> tuple[str, str, str]:
        library = Path(self.get_finalized_command("build_ext").get_ext_fullpath(NAME))
        self.root_is_pure = not library.exists()
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[
        Extension(
            NAME,
            sources=[str(CPU / "src/_cpu.cpp")],
            depends=[*map(str, sorted(CPU.glob("src/*.hpp"))), str(CPU / "source_hash.py")],
            define_macros=[("STATECHECK_SOURCE_HASH", f'"{HASH}"')],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": TagWheel},
)
