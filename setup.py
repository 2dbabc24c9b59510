"""Builds the Cython kernels. Everything that is not about compiling them stands in pyproject.toml.

A kernels/_<topic>.pyx that includes vec.pxi is written in `real` and compiled twice, as _<topic>_float32 and
_<topic>_float64.

DD2424FAST_MARCH    the instruction set to compile for (default: native); x86-64-v3 makes a portable wheel
"""

import os
import platform
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

KERNELS = "dd2424fast/kernels"  # the link in a checkout, the folder itself in an sdist
GENERATED = Path("build") / "variants"


def compiles(flags, source):
    """Whether the compiler builds and links this C program with these flags."""
    compiler = os.environ.get("CC", "cc").split()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.c"
        path.write_text(source)
        command = [*compiler, *flags, str(path), "-o", str(Path(folder) / "probe")]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            sys.exit(f"setup.py: the C compiler {compiler[0]!r} cannot be run: install GCC or clang, or set CC.")


def instruction_set():
    """The -march value asked for, and its compiler flags."""
    march = os.environ.get("DD2424FAST_MARCH", "native")
    trivial = "int main(void) { return 0; }"
    for flag in (f"-march={march}", f"-mcpu={march}"):  # clang on Apple silicon knows only the second
        if compiles([flag], trivial):
            return march, [flag]
    if march != "native":
        sys.exit(f"setup.py: the C compiler knows no DD2424FAST_MARCH={march}.")
    return "baseline", []


def openmp():
    """Compiler and linker flags for OpenMP, or nothing where there is none: the kernels then run on one thread."""
    program = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }"
    choices = [(["-fopenmp"], ["-fopenmp"])]
    if sys.platform == "darwin":
        prefix = os.environ.get("LIBOMP_PREFIX", "/opt/homebrew/opt/libomp")
        choices.append(([f"-I{prefix}/include", "-Xpreprocessor", "-fopenmp"], [f"-L{prefix}/lib", "-lomp"]))
    for compile_flags, link_flags in choices:
        if compiles([*compile_flags, *link_flags], program):
            return compile_flags, link_flags
    return [], []


def macros(flags):
    """The instruction-set macros that the compiler defines under these flags."""
    compiler = os.environ.get("CC", "cc").split()
    text = subprocess.run(
        [*compiler, *flags, "-dM", "-E", "-x", "c", os.devnull], capture_output=True, text=True, check=False
    ).stdout
    return {line.split()[1] for line in text.splitlines() if line.startswith("#define")}


def cpu_features(flags):
    """Names, in NumPy's spelling, of what the CPU must have to run code compiled with these flags."""
    defined = macros(flags)
    names = {
        "__SSE4_2__": "SSE42",
        "__AVX__": "AVX",
        "__AVX2__": "AVX2",
        "__FMA__": "FMA3",
        "__F16C__": "F16C",
        "__AVX512F__": "AVX512F",
        "__AVX512CD__": "AVX512CD",
        "__AVX512BW__": "AVX512BW",
        "__AVX512DQ__": "AVX512DQ",
        "__AVX512VL__": "AVX512VL",
        "__AVX512VNNI__": "AVX512VNNI",
        "__AVX512IFMA__": "AVX512IFMA",
        "__AVX512VBMI__": "AVX512VBMI",
    }
    return sorted(feature for macro, feature in names.items() if macro in defined)


def record(march, flags, features, threads):
    """Write kernels/_build.py, which import compares with the CPU it runs on and show_config prints."""
    compiler = os.environ.get("CC", "cc").split()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    Path(KERNELS, "_build.py").write_text(
        '"""Written by setup.py: what the kernels were compiled with."""\n\n'
        f"march = {march!r}\n"
        f"machine = {platform.machine()!r}\n"
        f"cpu_features = {features!r}\n"
        f"flags = {' '.join(flags)!r}\n"
        f"openmp = {threads!r}\n"
        f"compiler = {(version or ['unknown'])[0]!r}\n"
    )


def extensions():
    march, march_flags = instruction_set()
    openmp_compile, openmp_link = openmp()
    # -ffast-math would switch the whole process to flush-to-zero and gains nothing over these.
    flags = ["-O3", *march_flags, "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    record(march, flags, cpu_features(march_flags), bool(openmp_compile))
    common = {
        "include_dirs": [KERNELS, numpy.get_include()],
        "extra_compile_args": [*flags, "-Wno-unused-function", *openmp_compile],
        "extra_link_args": openmp_link,
        "depends": [f"{KERNELS}/vec.h", f"{KERNELS}/matrix_unit.h"],
    }
    no_old_api = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
    GENERATED.mkdir(parents=True, exist_ok=True)
    for source in sorted(Path(KERNELS).glob("_*.pyx")):
        package = "dd2424fast.kernels."
        if 'include "vec.pxi"' not in source.read_text():
            yield Extension(package + source.stem, [str(source)], define_macros=no_old_api, **common)
            continue
        for bits in ("32", "64"):
            variant = GENERATED / f"{source.stem}_float{bits}.pyx"
            text = f'include "{source.name}"\n'
            if not variant.exists() or variant.read_text() != text:
                variant.write_text(text)
            yield Extension(
                package + variant.stem, [str(variant)], define_macros=[*no_old_api, ("DD_REAL_BITS", bits)], **common
            )


if __name__ == "__main__":  # Cython's worker processes import this file
    # Of an editable install setuptools says that a folder of its name here goes before it; that is the same folder.
    warnings.filterwarnings("ignore", message="Editable installation")
    setup(
        ext_modules=cythonize(
            list(extensions()),
            include_path=[KERNELS, "."],
            nthreads=os.cpu_count(),
            compiler_directives={
                "language_level": 3,
                "boundscheck": False,
                "wraparound": False,
                "cdivision": True,
                "initializedcheck": False,
                "embedsignature": True,
            },
        ),
        options={"build_ext": {"parallel": os.cpu_count()}},
    )
