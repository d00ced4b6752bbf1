# SPDX-License-Identifier: Apache-2.0
"""Whether a TensorRT engine fits a machine and a request, from its manifest's words alone."""

from collections.abc import Mapping, Sequence

from predict2_spec.errors import EngineMismatchError, InvalidRequestError
from predict2_spec.manifest import Manifest, Range


def check_version(manifest: Manifest, here: str) -> None:
    """Refuse a plan of another TensorRT.

    A plan runs with the version that built it; one built to be version-compatible, with later ones too. If it loads
    plugins, these must be of its own major version, which is in the plan and runs it. TensorRT-RTX has no such plans:
    every release needs its own.

    Args:
        manifest: the engine's.
        here: the version that is installed, such as 10.13.3.9.

    Raises:
        EngineMismatchError: it can't run with the version that is installed.
    """
    built = manifest.versions.get(manifest.kind, "")
    if built and built == here:
        return
    later = () < _numbers(built) <= _numbers(here)
    loads = manifest.plugins and not manifest.plugins_inside
    same_major = _numbers(built)[:1] == _numbers(here)[:1]
    if (
        manifest.kind == "tensorrt"
        and manifest.version_compatible
        and later
        and (same_major or not loads)
    ):
        return
    raise EngineMismatchError(
        f"{manifest.network} was built by {manifest.kind} {built or '(its manifest does not say which)'}, and {here} "
        f"is installed; install {built or 'the one that built it'}, or build it again: {manifest.rebuild_command}"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def check_weights(manifest: Manifest) -> None:
    """Refuse a plan without weights.

    Raises:
        EngineMismatchError: they were left out when it was built, and never put in.
    """
    if manifest.weights.startswith("stripped"):
        raise EngineMismatchError(
            f"{manifest.network} was built without its weights and wasn't refitted, so it can't run; give it weights with "
            f"predict2-export refit, or build it again: {manifest.rebuild_command}"
        )


def check_plugins(manifest: Manifest) -> None:
    """Refuse a plan with plugins where there can be none.

    Raises:
        EngineMismatchError: TensorRT-RTX shall run it, whose networks take none of ours.
    """
    if manifest.kind == "tensorrt_rtx" and manifest.plugins:
        raise EngineMismatchError(
            f"{manifest.network} needs the plugins {', '.join(sorted(manifest.plugins))}, which TensorRT-RTX can't run; "
            f"build it again: {manifest.rebuild_command}"
        )


def check_architecture(manifest: Manifest, here: str) -> None:
    """Refuse a plan for other GPUs.

    Args:
        manifest: the engine's; its device names one architecture or several, such as sm89+sm120.
        here: this machine's, such as sm90.

    Raises:
        EngineMismatchError: it isn't among those.
    """
    if here not in manifest.device.split("+"):
        raise EngineMismatchError(
            f"{manifest.network} was built for {manifest.device}, and this GPU is {here}; build it again here: "
            f"{manifest.rebuild_command}"
        )


def check_names(manifest: Manifest, graph: str, actual: Sequence[str]) -> None:
    """Refuse a plan that isn't the manifest's.

    Args:
        manifest: the engine's.
        graph: which of its graphs.
        actual: names of the plan's inputs.

    Raises:
        EngineMismatchError: it takes other inputs.
    """
    expected = manifest.graphs[graph].inputs
    if set(actual) != set(expected):
        raise EngineMismatchError(
            f"graph {graph} of {manifest.network} takes {sorted(actual)}, its manifest says {sorted(expected)}; "
            f"build it again: {manifest.rebuild_command}"
        )


def check_shapes(
    where: str, shapes: Mapping[str, Sequence[int]], profile: Mapping[str, Range]
) -> None:
    """Refuse inputs that an engine wasn't built for.

    Args:
        where: the engine, as the message shall call it.
        shapes: of the inputs, by their names.
        profile: what the engine takes.

    Raises:
        InvalidRequestError: an input is missing or unknown, or its shape is outside its range.
    """
    if shapes.keys() != profile.keys():
        raise InvalidRequestError(f"{where} takes {sorted(profile)}, not {sorted(shapes)}")
    for name, shape in shapes.items():
        least, most = profile[name].min, profile[name].max
        inside = len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )
        if not inside:
            raise InvalidRequestError(
                f"{where}: {name} is {list(shape)}, and the engine was built for {list(least)} to {list(most)}; "
                "stay within that, or build the engine for larger shapes"
            )
