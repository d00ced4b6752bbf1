# SPDX-License-Identifier: Apache-2.0
import triton_python_backend_utils as pb_utils

from predict2_runtime.bls import bls_call
from predict2_runtime.metrics import stage_observer
from predict2_runtime.serve import serve_stage
from predict2_runtime.stages.prompt_refiner import PromptRefiner
from predict2_runtime.start import begin
from predict2_spec.tensors import PROMPT_REFINER


class TritonPythonModel:
    def initialize(self, args):
        policy = begin(args)
        self.stage = PromptRefiner(bls_call(pb_utils), policy.limits)
        self.observe = stage_observer(pb_utils, PROMPT_REFINER.name)

    def execute(self, requests):
        return serve_stage(pb_utils, PROMPT_REFINER, requests, self.stage, observe=self.observe)
