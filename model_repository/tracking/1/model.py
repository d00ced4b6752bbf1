# SPDX-License-Identifier: Apache-2.0
import os

import triton_python_backend_utils as pb_utils

from predict2_runtime.metrics import stage_observer
from predict2_runtime.serve import serve
from predict2_runtime.start import begin
from predict2_runtime.tracking import tracking_handler
from predict2_runtime.watch import open_terms
from predict2_spec.tensors import TRACKING


class TritonPythonModel:
    def initialize(self, args):
        begin(args)
        self.handler = tracking_handler(open_terms(os.environ).state)
        self.observe = stage_observer(pb_utils, TRACKING.name)

    def execute(self, requests):
        return serve(pb_utils, TRACKING, requests, self.handler, observe=self.observe)
