# SPDX-License-Identifier: Apache-2.0
import triton_python_backend_utils as pb_utils

from predict2_runtime.metrics import stage_observer
from predict2_runtime.serve import serve_stage
from predict2_runtime.stages.reasoner import Reasoner
from predict2_runtime.start import begin
from predict2_spec.tensors import REASONER


class TritonPythonModel:
    def initialize(self, args):
        policy = begin(args)
        self.stage = Reasoner.open(policy)
        if policy.warm_up:
            self.stage.warm_up(policy)
        self.observe = stage_observer(pb_utils, REASONER.name)

    def execute(self, requests):
        return serve_stage(pb_utils, REASONER, requests, self.stage, observe=self.observe)
