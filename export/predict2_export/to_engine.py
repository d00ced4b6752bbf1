# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as a plan of TensorRT or TensorRT-RTX, by their Python interface, which is the same for both."""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import onnx

from predict2_kernels import plugin_path
from predict2_runtime.engines.bindings import bindings, major
from predict2_runtime.engines.plugins import NAMESPACE, registered
from predict2_runtime.engines.tensorrt_log import tensorrt_log
from predict2_spec.errors import EngineBuildError, in_words
from predict2_spec.manifest import Range

from .build_options import BuildOptions, rtx_architectures
from .build_progress import Phases
from .toy import whole_file

if TYPE_CHECKING:
    import tensorrt as trt

T = TypeVar("T")
_log = logging.getLogger(__name__)
_TOLD_ERRORS = 3  # of a parser's; those after them follow from them


def build_plan(
    source: Path,
    target: Path,
    profile: Mapping[str, Range],
    options: BuildOptions,
    phases: Phases,
    *,
    tf32: bool = True,
    timing_cache: Path | None = None,
) -> dict[str, str]:
    """Build the plan `target` from the ONNX file `source`; its weights may be in a file beside it.

    Ctrl-C stops the build at TensorRT's next step. Nothing half-written is left.

    Args:
        source: an ONNX file whose types are final: TensorRT changes none.
        target: file to write.
        profile: the shapes of its inputs.
        options: how to build it.
        phases: is told how far TensorRT is, and can stop it.
        tf32: float32 products may round their inputs to 10 bits.
        timing_cache: what TensorRT measured before; read if it is there and written when the plan is built.

    Returns:
        The plugins that the plan needs: name -> version.

    Raises:
        EngineMismatchError: the flavour isn't installed.
        EngineBuildError: the file is damaged, has an operator that TensorRT hasn't, or can't be built for these
            shapes and GPUs; with TensorRT's own words.
    """
    module = bindings(options.flavour)

    def work() -> dict[str, str]:
        plugins = find_plugins(module, source, options)
        plan = _build(module, source, profile, options, phases, tf32, timing_cache)
        with whole_file(target) as part, part.open("wb") as file:
            file.write(plan)
        return plugins

    return _interruptible(work, phases.cancel)


def _interruptible(work: Callable[[], T], cancel: Callable[[], None]) -> T:
    """What `work` returns; it has a thread of its own, as no signal reaches one that is inside TensorRT."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return done.result()
    except KeyboardInterrupt:
        cancel()
        wait([done])
        raise


def _build(
    module: ModuleType,
    source: Path,
    profile: Mapping[str, Range],
    options: BuildOptions,
    phases: Phases,
    tf32: bool,
    timing_cache: Path | None,
) -> "trt.IHostMemory":
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module
    name = f"{options.flavour} {module.__version__}"
    log = tensorrt_log(options.flavour)
    log.errors.clear()
    builder = trt.Builder(log.as_logger())
    network = builder.create_network(_strongly_typed(module))
    parser = trt.OnnxParser(network, log.as_logger())  # owns the weights, so it has to stay
    if not parser.parse_from_file(str(source)):
        raise EngineBuildError(_parser_errors(parser, source, name))
    _check_inputs(network, profile, source)
    _allow_unfused_float32(module, network)
    config = _configure(module, builder, options, tf32)
    _add_profile(builder, config, profile)
    monitor = _monitor(module, phases)
    config.progress_monitor = monitor
    _read_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if phases.failure:
        raise phases.failure
    if phases.cancelled:
        raise EngineBuildError(f"{source.name}: the build was stopped; start it again")
    if plan is None:
        raise EngineBuildError(
            f"{name} can't build {source.name} for {options.device}: "
            f"{'; '.join(filter(None, map(_one_line, log.errors))) or 'it does not say why'}. Its log may say more; a smaller range of sizes "
            "(--sizes table), more --workspace or another --dtype may help"
        )
    _write_timing_cache(config, timing_cache)
    del parser
    return plan


def _strongly_typed(module: ModuleType) -> int:
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)  # where the flag is gone, every network is


def _parser_errors(parser: "trt.OnnxParser", source: Path, builder: str) -> str:
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    told = []
    for error in found[:_TOLD_ERRORS]:
        inside = "".join(f" in {name}" for name in error.local_function_stack())
        node = f"node {error.node_name()} ({error.node_operator()}){inside}: "
        told.append((node if error.node_name() else "") + _one_line(error.desc()))
    return (
        f"{source.name} can't be read by {builder}: {'; '.join(told) or 'it does not say why'}. "
        "Lower the network again; if that doesn't help, this TensorRT lacks what the network needs: try a later one"
    )


def _one_line(text: str) -> str:
    """TensorRT's words without what it adds to all of them on a machine without a GPU."""
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if line and "catchCudaError" not in line).rstrip(".")


def _check_inputs(network: "trt.INetworkDefinition", profile: Mapping[str, Range], source: Path) -> None:  # fmt: skip
    """Refuse a profile that isn't the graph's; TensorRT itself takes some that no input fits."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    if shapes.keys() != profile.keys():
        raise EngineBuildError(
            f"{source.name} takes {', '.join(shapes)} and the profile is of {', '.join(profile)}; they must be the same"
        )
    for name, shape in shapes.items():
        bounds = profile[name]
        ranks = {len(shape), len(bounds.min), len(bounds.opt), len(bounds.max)}
        fits = len(ranks) == 1 and all(
            0 < low <= best <= high and dim in (-1, high) and (dim == -1 or low == high)
            for dim, low, best, high in zip(shape, bounds.min, bounds.opt, bounds.max, strict=True)
        )
        if not fits:
            raise EngineBuildError(
                f"{source.name}: input {name} is {list(shape)}, where -1 is free, and its profile {list(bounds.min)} to "
                f"{list(bounds.max)}, tuned for {list(bounds.opt)}; the profile must ascend and leave fixed dims as they are"
            )


def _allow_unfused_float32(module: ModuleType, network: "trt.INetworkDefinition") -> None:
    """Let attention in float32 be several kernels, as none does it at once.

    In narrower types it must be one: what it would write in between has no place in memory.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for index in range(network.num_layers if kind else 0):
        layer: Any = network.get_layer(index)
        if layer.type == kind and layer.get_input(0).dtype == trt.float32:
            layer.__class__ = module.IAttentionInputLayer  # the parser gives all layers one class
            layer.attention.decomposable = True


def _configure(
    module: ModuleType, builder: "trt.Builder", options: BuildOptions, tf32: bool
) -> "trt.IBuilderConfig":
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module
    config = builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    # A context's memory is then what its shapes need, not what the largest would.
    config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    wanted = {
        "TF32": tf32,
        "REFIT": options.refittable,
        "STRIP_PLAN": options.stripped,
        "REFIT_IDENTICAL": options.stripped and not options.refittable,
        "VERSION_COMPATIBLE": options.version_compatible,
        "REQUIRE_USER_ALLOCATION": options.fixed_memory,
    }
    for name, on in wanted.items():
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is not None:  # only RTX has the last one
            (config.set_flag if on else config.clear_flag)(flag)
    if options.plugins == "serialize":
        config.plugins_to_serialize = [str(plugin_path(major(module)))]
    if options.flavour == "tensorrt_rtx":
        of_rtx: Any = config  # the other flavour has no such methods
        known = rtx_architectures(module)
        of_rtx.num_compute_capabilities = len(options.architectures)
        for index, name in enumerate(options.architectures):
            of_rtx.set_compute_capability(known[name], index)
    return config


def _add_profile(
    builder: "trt.Builder", config: "trt.IBuilderConfig", profile: Mapping[str, Range]
) -> None:
    made = builder.create_optimization_profile()
    for name, bounds in profile.items():
        made.set_shape(name, bounds.min, bounds.opt, bounds.max)
    config.add_optimization_profile(made)


def _monitor(module: ModuleType, phases: Phases) -> "trt.IProgressMonitor":
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            phases.start(phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

    return Monitor()


def _read_timing_cache(config: "trt.IBuilderConfig", path: Path | None) -> None:
    if path is None:
        return
    kept = config.create_timing_cache(path.read_bytes()) if path.is_file() else None
    # TensorRT refuses what is damaged, or was measured by another version or on another GPU.
    if kept is None or not config.set_timing_cache(kept, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _write_timing_cache(config: "trt.IBuilderConfig", path: Path | None) -> None:
    if path is None:
        return
    try:
        with whole_file(path) as part:
            part.write_bytes(config.get_timing_cache().serialize())
    except OSError as error:  # the plan took long to build, and needs no cache
        _log.warning("what TensorRT measured isn't kept: %s", in_words(error))


def fused_nodes(path: Path) -> dict[str, str]:
    """The kinds of fused nodes in an ONNX file: operator -> version of its plugin."""
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return {
        node.op_type: next(
            (a.s.decode() for a in node.attribute if a.name == "plugin_version"), "1"
        )
        for node in nodes
        if node.domain == NAMESPACE
    }


def find_plugins(module: ModuleType, source: Path, options: BuildOptions) -> dict[str, str]:
    """Those of a graph's fused nodes that will be plugins; the parser takes the bodies of the others.

    Args:
        module: TensorRT's bindings, into whose registry our plugins are loaded.
        source: an ONNX file.
        options: say whether to use plugins.

    Returns:
        name -> version.

    Raises:
        EngineBuildError: the library can't be loaded.
    """
    if options.plugins == "none":
        return {}
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module
    path = plugin_path(major(module))
    # A registry refuses the same plugin twice.
    if not registered(module) and not trt.get_plugin_registry().load_library(str(path)):
        raise EngineBuildError(
            f"TensorRT {module.__version__} can't load the plugins in {path}: "
            f"{'; '.join(tensorrt_log(options.flavour).errors)}. Install this package anew, so that they are built for "
            "this TensorRT, or build without them: --plugins none"
        )
    present = registered(module)
    return {name: v for name, v in fused_nodes(source).items() if (name, v) in present}
