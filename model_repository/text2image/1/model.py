# SPDX-License-Identifier: Apache-2.0
import os

import triton_python_backend_utils as pb_utils

from predict2_runtime.bls import bls_call
from predict2_runtime.metrics import Metrics
from predict2_runtime.pipelines.tasks import open_backend, task_handler
from predict2_runtime.repository import read_preset, served_repository
from predict2_runtime.serve import serve
from predict2_runtime.start import begin
from predict2_runtime.watch import open_terms
from predict2_spec.tensors import MODELS

MODEL = MODELS["text2image"]


class TritonPythonModel:
    def initialize(self, args):
        begin(args)
        repository = served_repository(args)
        self.terms = open_terms(os.environ)
        preset = read_preset(repository)
        self.metrics = Metrics(pb_utils, MODEL.name, preset.name, self.terms.state)
        backend = open_backend(repository, bls_call(pb_utils), self.metrics.count_blocked)
        self.handler = self.metrics.running(task_handler(MODEL.name, backend))

    def execute(self, requests):
        return serve(
            pb_utils, MODEL, requests, self.handler, terms=self.terms, observe=self.metrics.observe
        )
