# SPDX-License-Identifier: Apache-2.0
import triton_python_backend_utils as pb_utils

from predict2_runtime.metrics import stage_observer
from predict2_runtime.repository import read_preset, served_repository, version_folder
from predict2_runtime.serve import serve_stage
from predict2_runtime.stages.denoiser import Denoiser
from predict2_runtime.start import begin
from predict2_spec.tensors import VIDEO2WORLD_DENOISER


class TritonPythonModel:
    def initialize(self, args):
        policy = begin(args)
        preset = read_preset(served_repository(args))
        self.stage = Denoiser.open(version_folder(args), preset, "video2world", policy.limits)
        if policy.warm_up:
            self.stage.warm_up()
        self.observe = stage_observer(pb_utils, VIDEO2WORLD_DENOISER.name)

    def execute(self, requests):
        return serve_stage(
            pb_utils, VIDEO2WORLD_DENOISER, requests, self.stage, observe=self.observe
        )
