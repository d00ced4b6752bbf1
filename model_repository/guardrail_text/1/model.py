# SPDX-License-Identifier: Apache-2.0
import triton_python_backend_utils as pb_utils

from predict2_runtime.metrics import stage_observer
from predict2_runtime.repository import read_preset, served_repository
from predict2_runtime.serve import serve_stage
from predict2_runtime.stages.guardrail_text import GuardrailText
from predict2_runtime.start import begin
from predict2_spec.tensors import GUARDRAIL_TEXT


class TritonPythonModel:
    def initialize(self, args):
        policy = begin(args)
        self.stage = GuardrailText.open(policy, read_preset(served_repository(args)))
        if policy.warm_up:
            self.stage.warm_up(policy)
        self.observe = stage_observer(pb_utils, GUARDRAIL_TEXT.name)

    def execute(self, requests):
        return serve_stage(pb_utils, GUARDRAIL_TEXT, requests, self.stage, observe=self.observe)
