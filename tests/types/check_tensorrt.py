# SPDX-License-Identifier: Apache-2.0
"""Run as a program: type-checks what uses TensorRT against TensorRT's real bindings, once for each version.

check_tensorrt.py FOLDER keeps wheels and stubs in FOLDER; they are NVIDIA's, under its own licence, and never committed.
The bindings are compiled and come without types, and the wheel with the libraries that they load isn't on PyPI. So
each is imported beside stand-ins that export the few C functions it links, all of which return null, and
pybind11-stubgen writes down the classes it finds. It is a check and nothing is installed for it, hence its place
among the tests; a stub kept in the repository would be NVIDIA's text, and of one version only. Where a wheel can't be
fetched or there is no C compiler it says what it didn't check, and doesn't fail: without a network nothing can be done.
"""

import ast
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("spec", "kernels", "runtime", "export")
USES = "import tensorrt as trt"  # how a module says so, see predict2_runtime.engines.bindings
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
# What pybind11 does and its docstrings, of which stubs are made, don't say
TRUE_AT_RUN_TIME = (
    (r"(-> |: |\[)bool\b", r"\1builtins.bool"),  # one of the data types has that name
    (r"\btyping\.SupportsInt\b", "int"),  # newer wheels say so of what a callback is given, too
    (r": Dims(?=[,)]| =)", ": Dims | collections.abc.Sequence[int]"),  # of parameters
    (r"^class Dims:$", "class Dims:\n    def __iter__(self) -> collections.abc.Iterator[int]: ..."),
    (
        r"^class IHostMemory:$",
        "class IHostMemory:\n    def __buffer__(self, flags: int, /) -> memoryview: ...",
    ),
)
# What the packages add to the compiled modules, in Python and without types
ADDED = "from {module} import *\n__version__: str\n"


@dataclass(frozen=True)
class Bindings:
    """A wheel of bindings."""

    wheel: str
    module: str  # the compiled one
    libraries: tuple[str, ...]  # that it links


def tensorrt(version):
    major = version.split(".")[0]
    names = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
    libraries = tuple(f"lib{name}.so.{major}" for name in names)
    return Bindings(f"tensorrt_cu13_bindings=={version}", "tensorrt_bindings.tensorrt", libraries)


ALL = (
    tensorrt("10.13.3.9"),  # the oldest that plugins compile for; building takes 10.15
    tensorrt("11.1.0.106"),
    Bindings(
        "tensorrt_rtx_cu13_bindings==1.7.1.116",
        "tensorrt_rtx_bindings.tensorrt_rtx",
        ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
    ),
)


def say(line):
    sys.stdout.write(line + "\n")


def run(*command, **environment):
    """Output of a program; what it printed when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout.strip())
    return done.stdout


def make_stubs(bindings, folder):
    """Stubs of the bindings, which code that imports `tensorrt` finds in the folder that comes back."""
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    stubs = folder / bindings.wheel / f"stubs-{made_by}"
    if (stubs / "tensorrt").is_dir():
        return stubs
    unpacked = folder / bindings.wheel / "wheel"
    if not unpacked.is_dir():
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        run(sys.executable, "-m", "pip", "download", *options, "-d", folder, bindings.wheel)
        name, version = bindings.wheel.split("==")
        (wheel,) = folder.glob(f"{name}-{version}-*.whl")
        with zipfile.ZipFile(wheel) as file:
            file.extractall(unpacked)
    package = bindings.module.split(".")[0]
    source = unpacked / "stand_in.c"
    source.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for library in bindings.libraries:  # the bindings look beside themselves first
        run("cc", "-shared", "-fPIC", "-o", unpacked / package / library, source)
    stubgen = Path(sys.executable).parent / "pybind11-stubgen"
    # a few signatures it can't read; they become `...`
    run(
        *(stubgen, bindings.module, "--output-dir", stubs, "--ignore-all-errors"),
        PYTHONPATH=unpacked,
        LD_LIBRARY_PATH=unpacked / package,
    )
    path = stubs.joinpath(*bindings.module.split(".")).with_suffix(".pyi")
    lines = [mended(line) for line in path.read_text().splitlines()]
    path.write_text(
        "\n".join(["# mypy: ignore-errors", "import builtins, collections.abc", *lines])
    )
    (stubs / "tensorrt").mkdir()  # last: it says that the rest is there
    (stubs / "tensorrt" / "__init__.pyi").write_text(ADDED.format(module=bindings.module))
    return stubs


def mended(line):
    """The line of a stub without what its generator gets wrong."""
    for wrong, right in TRUE_AT_RUN_TIME:
        line = re.sub(wrong, right, line)
    signature = re.match(r"( +def \w+\()self.*:( \.\.\.)?$", line)
    try:
        if signature:
            ast.parse(line.strip().removesuffix(" ...") + " ...")
    except SyntaxError:  # a parameter called `in`, or one without a default after one with
        return f"{signature[1]}self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:{signature[2] or ''}"
    return line


def users():
    """The modules that use TensorRT."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return sorted(file for file in files if USES in file.read_text())


def main():
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    modules, failed = users(), False
    for bindings in ALL:
        try:
            stubs = make_stubs(bindings, folder)
        except (RuntimeError, OSError) as error:  # no network, no C compiler
            reason = str(error).strip().splitlines()[-1]
            say(f"NOT CHECKED against {bindings.wheel}, as its stubs can't be made: {reason}")
            continue
        try:
            run(sys.executable, "-m", "mypy", "--strict", *modules, MYPYPATH=stubs)
            say(f"{len(modules)} modules checked against {bindings.wheel}")
        except RuntimeError as error:
            failed = True
            say(f"Against {bindings.wheel}:\n{error}")
    sys.exit(failed)


main()
