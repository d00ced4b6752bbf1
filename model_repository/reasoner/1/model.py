# SPDX-License-Identifier: Apache-2.0
import os

import triton_python_backend_utils as pb_utils

from predict2_runtime.policy import read_policy
from predict2_runtime.serve import serve_stage
from predict2_runtime.stages.reasoner import Reasoner
from predict2_spec.tensors import REASONER


class TritonPythonModel:
    def initialize(self, args):
        self.stage = Reasoner.open(read_policy(os.environ))

    def execute(self, requests):
        return serve_stage(pb_utils, REASONER, requests, self.stage)
