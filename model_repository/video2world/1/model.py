# SPDX-License-Identifier: Apache-2.0
import os

import triton_python_backend_utils as pb_utils

from predict2_runtime.bls import bls_call
from predict2_runtime.metrics import blocked_counter
from predict2_runtime.pipelines.tasks import open_backend, task_handler
from predict2_runtime.repository import served_repository
from predict2_runtime.serve import serve
from predict2_runtime.watch import open_terms
from predict2_spec.tensors import MODELS

MODEL = MODELS["video2world"]


class TritonPythonModel:
    def initialize(self, args):
        backend = open_backend(
            served_repository(args), bls_call(pb_utils), blocked_counter(pb_utils)
        )
        self.handler = task_handler(MODEL.name, backend)
        self.terms = open_terms(os.environ)

    def execute(self, requests):
        return serve(pb_utils, MODEL, requests, self.handler, terms=self.terms)
