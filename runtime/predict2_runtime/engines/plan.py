# SPDX-License-Identifier: Apache-2.0
"""One graph of TensorRT on a GPU, called like the module it replaces."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from predict2_spec.errors import EngineMismatchError, ServerError
from predict2_spec.manifest import Range

from .bindings import Flavour, bindings
from .fit import check_shapes
from .memory import Memory, Place
from .tensorrt_log import tensorrt_log
from .torch_arrays import as_tensor, for_kernels

if TYPE_CHECKING:
    import tensorrt as trt

Tensors = dict[str, torch.Tensor]
Shapes = tuple[tuple[int, ...], ...]  # of the inputs, in the engine's order

# By TensorRT's names
_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Signature:
    """What a deserialized engine takes and gives, by the names of its tensors."""

    inputs: dict[str, torch.dtype]
    outputs: dict[str, torch.dtype]
    profile: dict[str, Range]  # of the inputs


def read_signature(where: str, module: ModuleType, engine: "trt.ICudaEngine") -> Signature:
    """The signature of an engine.

    Raises:
        EngineMismatchError: it has a tensor that isn't on the GPU, or of a type that torch doesn't know.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module
    inputs, outputs, profile = {}, {}, {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE or kind not in _DTYPES:
            raise EngineMismatchError(
                f"{where}: {name} is {kind} in {engine.get_tensor_location(name).name} memory; only "
                f"{', '.join(_DTYPES)} in DEVICE memory can be bound. Export the network with such a tensor"
            )
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            inputs[name] = _DTYPES[kind]
            profile[name] = _range(engine, name)
        else:
            outputs[name] = _DTYPES[kind]
    return Signature(inputs, outputs, profile)


def _range(engine: "trt.ICudaEngine", name: str) -> Range:
    fixed = _sizes(engine.get_tensor_shape(name))
    if -1 not in fixed:
        return Range(fixed, fixed, fixed)
    return Range(*(_sizes(bound) for bound in engine.get_tensor_profile_shape(name, 0)))


def _sizes(dims: "trt.Dims") -> tuple[int, ...]:
    return tuple(dims[i] for i in range(len(dims)))


class Execution:
    """An execution context, and the tensors that it is bound to."""

    def __init__(
        self, where: str, flavour: Flavour, context: "trt.IExecutionContext", memory: Memory
    ) -> None:
        self._where, self._flavour = where, flavour
        self._context = context
        self._memory = memory
        self._stream = torch.cuda.Stream(memory.device)  # type: ignore[no-untyped-call]
        self._shapes: Shapes = ()
        self._place: Place | None = None  # of the working memory that the context was given

    def bind(self, inputs: Tensors, outputs: Mapping[str, torch.dtype]) -> Tensors:
        """Bind inputs of the engine's own types, and fresh tensors for the outputs, which come back."""
        shapes = tuple(tuple(tensor.shape) for tensor in inputs.values())
        changed = shapes != self._shapes
        if changed:
            self._shapes = ()  # until all is bound: what fails half-way leaves neither the old nor the new
        for name, tensor in inputs.items():
            if changed:
                self._check(self._context.set_input_shape(name, tuple(tensor.shape)), name, shapes)
            self._check(self._context.set_tensor_address(name, tensor.data_ptr()), name, shapes)
        if changed:
            self._check(self._shapes_follow(), "shapes", shapes)
        made = {}
        for name, dtype in outputs.items():
            shape = _sizes(self._context.get_tensor_shape(name))
            made[name] = torch.empty(shape, dtype=dtype, device=self._memory.device)
            self._check(self._context.set_tensor_address(name, made[name].data_ptr()), name, shapes)
        if changed or self._place != self._memory.place:  # another engine may have made it larger
            self._memory.grow(self._context.update_device_memory_size_for_shapes())
            self._place = self._memory.place
            self._context.set_device_memory(*self._place)
        self._shapes = shapes
        return made

    def _shapes_follow(self) -> bool:
        """Whether the inputs' shapes give all others; TensorRT raises if they contradict each other."""
        try:
            return not self._context.infer_shapes()
        except RuntimeError as error:
            tensorrt_log(self._flavour).errors.append(str(error))
            return False

    def launch(self) -> None:
        """Queue the work on the caller's current stream.

        Raises:
            ServerError: TensorRT refuses.
        """
        caller = torch.cuda.current_stream(self._memory.device)
        if caller.cuda_stream:
            self._enqueue(caller)
            return
        # On the default stream TensorRT would wait for the GPU at every launch. A stream of our own that runs
        # between the caller's earlier and later work comes to the same.
        self._stream.wait_stream(caller)
        self._enqueue(self._stream)
        caller.wait_stream(self._stream)

    def _enqueue(self, stream: torch.cuda.Stream) -> None:
        self._check(self._context.execute_async_v3(stream.cuda_stream), "the launch", self._shapes)

    def _check(self, done: bool, what: str, shapes: Shapes) -> None:
        if not done:
            errors = "; ".join(tensorrt_log(self._flavour).errors) or "it logged no error"
            raise ServerError(
                f"{self._flavour} failed on {what} of {self._where} with inputs of {list(map(list, shapes))}: {errors}"
            )


@dataclass(frozen=True)
class Recording:
    """Inputs and outputs at fixed places, and how to compute the ones from the others."""

    inputs: Tensors
    outputs: Tensors
    execution: Execution
    replay: Callable[[], None]
    place: Place  # of the memory that it works in


class Plan:
    """An Engine of a plan that is on the GPU. Calls must not overlap, also not those of plans with the same memory.

    Args:
        where: the engine, as errors shall call it.
        flavour: whose plan it is.
        engine: deserialized.
        memory: to work in.
        recorded: CUDA graphs to keep, one for the inputs' shapes each; the one that wasn't used for the longest time
            makes room. 0 launches every kernel by itself.
    """

    def __init__(
        self, where: str, flavour: Flavour, engine: "trt.ICudaEngine", memory: Memory, recorded: int
    ) -> None:
        self.signature = read_signature(where, bindings(flavour), engine)
        self._where, self._flavour, self._engine = where, flavour, engine
        self._memory = memory
        self._recorded = recorded
        self._recordings: OrderedDict[Shapes, Recording] = OrderedDict()
        self._direct = None if recorded else self._execution()

    def __call__(self, inputs: Mapping[str, Any]) -> Tensors:
        """Compute on the caller's current stream; arrays elsewhere, or of other types, are moved and cast.

        Raises:
            InvalidRequestError: an input is missing or unknown, or its shape is outside the profile.
            ServerError: TensorRT fails.
        """
        check_shapes(
            self._where, {k: tuple(v.shape) for k, v in inputs.items()}, self.signature.profile
        )
        tensorrt_log(self._flavour).errors.clear()
        # Nothing here needs to outlive the call: tensors are made and dropped on the caller's stream, and torch gives
        # their memory only to what is queued on it later. Inputs that came from other streams are the caller's care.
        with torch.cuda.device(self._memory.device), self._memory.held():
            placed = {
                name: for_kernels(as_tensor(inputs[name], self._memory.device).to(dtype))
                for name, dtype in self.signature.inputs.items()
            }
            if self._direct:
                outputs = self._direct.bind(placed, self.signature.outputs)
                self._direct.launch()
                return outputs
            return self._run_recorded(placed)

    def _run_recorded(self, inputs: Tensors) -> Tensors:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs.values())
        recording = self._recordings.pop(shapes, None)
        if recording is None or recording.place != self._memory.place:
            recording = self._record(inputs)
        else:
            for name, tensor in inputs.items():
                recording.inputs[name].copy_(tensor)
            recording.replay()
        self._recordings[shapes] = recording
        if len(self._recordings) > self._recorded:
            self._recordings.popitem(last=False)
        return {name: tensor.clone() for name, tensor in recording.outputs.items()}

    def _record(self, inputs: Tensors) -> Recording:
        """Run once, and keep what it takes to run again. A context of its own: it mustn't see other shapes later."""
        torch.cuda.synchronize(self._memory.device)  # the one that makes room may still be replayed
        fixed = {name: tensor.clone() for name, tensor in inputs.items()}
        execution = self._execution()
        outputs = execution.bind(fixed, self.signature.outputs)
        execution.launch()  # also what TensorRT does only at the first launch, which can't be recorded
        replay = execution.launch  # RTX records by itself, as its context was told
        if self._flavour == "tensorrt":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # computes nothing, so the outputs stay
                execution.launch()
            replay = graph.replay
        return Recording(fixed, outputs, execution, replay, self._memory.place)

    def _execution(self) -> Execution:
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = bindings(self._flavour)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if self._recorded and self._flavour == "tensorrt_rtx":
            of_rtx: Any = trt  # the other flavour has neither name
            settings: Any = config
            settings.cuda_graph_strategy = of_rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = self._engine.create_execution_context(config)
        if context is None:
            errors = "; ".join(tensorrt_log(self._flavour).errors)
            raise ServerError(f"{self._where}: no execution context could be made: {errors}")
        return Execution(self._where, self._flavour, context, self._memory)
