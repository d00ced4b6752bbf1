# SPDX-License-Identifier: Apache-2.0
"""Builds an ONNX file with TensorRT-RTX for a GPU, and prints what became of its linears as JSON.

A process has one TensorRT log, and the layers of a plan are told in it alone where there is no GPU to open the plan.
"""

import json
import re
import sys

import tensorrt_rtx_bindings as trt


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []

    def log(self, severity, message):
        self.lines += message.splitlines()


def build(path, architecture, shapes):
    """(kinds of the network's layers, the plan's layers as they are told)."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(path), parser.get_error(0).desc()
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape, shape, shape)
    config.add_optimization_profile(profile)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # tells layers with their types
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[architecture], 0)
    assert builder.build_serialized_network(network, config), log.lines[-5:]
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    return kinds, [line for line in log.lines if re.match(r"\s*Name: .*LayerType: ", line)]


def linears(products):
    """How many linears they are: several that share an input can be one product, whose name has all of theirs."""
    names = [re.search("Name: ([^,]+)", line)[1] for line in products]
    return sum(name.count("node_linear") for name in names)


path, architecture, shapes = sys.argv[1:]
kinds, told = build(path, architecture, json.loads(shapes))
products = [line for line in told if "LayerType: gemm," in line]
in_fp8 = [line for line in products if "Datatype: FP8" in line.split("Outputs:")[0]]
found = {
    "quantize": kinds.count(trt.LayerType.QUANTIZE),
    "dequantize": kinds.count(trt.LayerType.DEQUANTIZE),
    "linears": linears(products),
    "linears_in_fp8": linears(in_fp8),
    "products_in_fp8": len(in_fp8),
}
sys.stdout.write(json.dumps(found))
