# SPDX-License-Identifier: Apache-2.0
"""Run as a program: loads the plugins into TensorRT-RTX's registry and prints what became of them.

registry_probe.py LIBRARY loads it through the registry; with --open it is only opened, as by Triton.
"""

import ctypes
import json
import sys

import numpy as np
import tensorrt_rtx_bindings.tensorrt_rtx as trt


class Log(trt.ILogger):
    """Keeps what TensorRT is told of errors."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def log(self, severity, message):
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)


def fields(attributes):
    kinds = {
        int: (np.int32, trt.PluginFieldType.INT32),
        float: (np.float32, trt.PluginFieldType.FLOAT32),
    }
    return trt.PluginFieldCollection(
        [
            trt.PluginField(name, np.array([value], kinds[type(value)][0]), kinds[type(value)][1])
            for name, value in attributes.items()
        ]
    )


def main():
    log = Log()
    builder = trt.Builder(log)  # makes ours the logger of the process
    registry = trt.get_plugin_registry()
    before = {creator.name for creator in registry.all_creators}
    if "--open" in sys.argv:
        ctypes.CDLL(sys.argv[1])
    else:
        registry.load_library(sys.argv[1])
    ours = [creator for creator in registry.all_creators if creator.name not in before]
    log.errors.clear()  # of the machine, such as a missing GPU
    attributes = {
        "Predict2QkNormRope": {"num_heads": 16, "packed": 1, "q_scale": 0.125},
        "Predict2QkNorm": {"num_heads": 16},
    }
    created = []
    for listed in ours:
        creator = registry.get_creator(listed.name, "1", "predict2")
        given = fields(attributes.get(listed.name, {}))
        plugin = creator.create_plugin("layer", given, trt.TensorRTPhase.BUILD)
        core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
        build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
        created.append(
            [core.plugin_name, core.plugin_version, core.plugin_namespace, build.num_outputs]
        )
    good = list(log.errors)
    refused = registry.get_creator("Predict2QkNormRope", "1", "predict2").create_plugin(
        "layer", fields({"packed": 1}), trt.TensorRTPhase.BUILD
    )
    answer = {
        "listed": [
            [c.name, c.plugin_version, c.plugin_namespace, [f.name for f in c.field_names]]
            for c in ours
        ],
        "created": created,
        "errors": good,
        "refused": refused is None,
        "reasons": log.errors[len(good) :],
    }
    sys.stdout.write(json.dumps(answer))
    del builder


main()
