# SPDX-License-Identifier: Apache-2.0
import os

import triton_python_backend_utils as pb_utils

from predict2_runtime.bls import bls_call
from predict2_runtime.metrics import blocked_counter
from predict2_runtime.pipelines.best_of_n import best_of_n_handler
from predict2_runtime.pipelines.tasks import open_backend
from predict2_runtime.repository import served_repository
from predict2_runtime.serve import serve
from predict2_runtime.watch import open_terms
from predict2_spec.tensors import BEST_OF_N


class TritonPythonModel:
    def initialize(self, args):
        backend = open_backend(
            served_repository(args), bls_call(pb_utils), blocked_counter(pb_utils)
        )
        self.handler = best_of_n_handler(backend)
        self.terms = open_terms(os.environ)

    def execute(self, requests):
        return serve(pb_utils, BEST_OF_N, requests, self.handler, terms=self.terms)
