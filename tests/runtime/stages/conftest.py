# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from predict2_runtime.policy import LanguageModel, Policy
from predict2_runtime.stages.reasoner import Reasoner
from predict2_spec.tensors import REASONER


@pytest.fixture
def call_reasoner():
    """From where a language model answers to a `call` that reaches nothing but the reasoner stage with it."""

    def connect(where):
        stage = Reasoner.open(Policy(reasoner=LanguageModel(**where)))

        def call(model, question, frames=None, fps=None):
            assert model is REASONER
            inputs = {"question": [question], "frames": frames}
            return stage(inputs if fps is None else inputs | {"fps": np.array([fps])})

        return call

    return connect
