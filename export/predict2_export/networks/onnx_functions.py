# SPDX-License-Identifier: Apache-2.0
"""The fused nodes written out in standard operators, as the kernels compute them: in float32, rounded once.

Texts are ONNX's own; `{dtype}` stands for the number of the graph's type, `{eps}` for that of the norms.
"""

import onnx
import onnx_ir as ir

from .fused import DOMAIN, EPS

_OPSET = 23  # of the bodies
_NODE = "plugin_namespace, plugin_version"  # what every node says for TensorRT

# shift, scale: [B, T, 1, D] in float32 out of {modulation} [B, T, P * D]; {x} is [B, T, S, D].
_MODULATED = """
    width = Shape <start: int = -1> ({x})
    as_given = Constant <value_ints: ints = [0, 0, -1]> ()
    by_part = Concat <axis: int = 0> (as_given, width)
    rounded_parts = Reshape ({modulation}, by_part)
    parts = Cast <to: int = 1> (rounded_parts)
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    two = Constant <value_ints: ints = [2]> ()
    shift = Slice (parts, zero, one, two)
    scale = Slice (parts, one, two, two)
    wide = Cast <to: int = 1> ({x})
    ones = ConstantOfShape <value: tensor = float[1] {{1.0}}> (width)
    normed = LayerNormalization <axis: int = -1, epsilon: float = {eps}> (wide, ones)
    unit = Constant <value_float: float = 1.0> ()
    factor = Add (unit, scale)
    scaled = Mul (normed, factor)
    shifted = Add (scaled, shift)
    u = Cast <to: int = {dtype}> (shifted)
"""

_MODULATE = (
    "Predict2Modulate <"
    + _NODE
    + "> (x, modulation) => (u) {{"
    + _MODULATED.replace("{x}", "x").replace("{modulation}", "modulation")
    + "}}"
)

# The product and the sum are rounded: both are tensors in the network.
_GATED_MODULATE = (
    "Predict2GatedModulate <" + _NODE + "> (x, y, modulation, following) => (total, u) {{"
    """
    like_x = Shape (x)
    output = Reshape (y, like_x)
    channels = Shape <start: int = -1> (x)
    by_frame = Constant <value_ints: ints = [0, 0, -1]> ()
    by_gate = Concat <axis: int = 0> (by_frame, channels)
    own_parts = Reshape (modulation, by_gate)
    first = Constant <value_ints: ints = [2]> ()
    last = Constant <value_ints: ints = [3]> ()
    gate = Slice (own_parts, first, last, first)
    gated = Mul (gate, output)
    total = Add (x, gated)
    """ + _MODULATED.replace("{x}", "total").replace("{modulation}", "following") + "}}"
)

# {x} [B, N, D] -> {x}_heads, float32 [B, heads, N, E], normalised.
_NORMED = """
    {x}_split = Reshape ({x}, by_head)
    {x}_turned = Transpose <perm: ints = [0, 2, 1, 3]> ({x}_split)
    {x}_wide = Cast <to: int = 1> ({x}_turned)
    {x}_weight_wide = Cast <to: int = 1> ({x}_weight)
    {x}_heads = RMSNormalization <axis: int = -1, epsilon: float = {eps}> ({x}_wide, {x}_weight_wide)
"""
_BOTH_NORMED = (
    """
    as_given = Constant <value_ints: ints = [0, 0]> ()
    count = Constant <value_int: int = @num_heads> ()
    just = Constant <value_ints: ints = [1]> ()
    heads = Reshape (count, just)
    rest = Constant <value_ints: ints = [-1]> ()
    by_head = Concat <axis: int = 0> (as_given, heads, rest)
    """
    + _NORMED.replace("{x}", "q")
    + _NORMED.replace("{x}", "k")
    + """
    factor = Constant <value_float: float = @q_scale> ()
    q_scaled = Mul (q_heads, factor)
    """
)
_ATTENTION_NODE = _NODE + ", num_heads, heads_first, q_scale"

_QK_NORM = (
    "Predict2QkNorm <"
    + _ATTENTION_NODE
    + "> (q, k, q_weight, k_weight) => (q_out, k_out) {{"
    + _BOTH_NORMED
    + """
    q_out = Cast <to: int = {dtype}> (q_scaled)
    k_out = Cast <to: int = {dtype}> (k_heads)
    }}"""
)

# {x} float32 [B, heads, N, E] turned by cos and sin [N, E/2].
_ROTATED = """
    {x}_first, {x}_second = Split <axis: int = -1, num_outputs: int = 2> ({from})
    {x}_first_cos = Mul ({x}_first, cos)
    {x}_second_sin = Mul ({x}_second, sin)
    {x}_second_cos = Mul ({x}_second, cos)
    {x}_first_sin = Mul ({x}_first, sin)
    {x}_low = Sub ({x}_first_cos, {x}_second_sin)
    {x}_high = Add ({x}_second_cos, {x}_first_sin)
    {x}_both = Concat <axis: int = -1> ({x}_low, {x}_high)
    {x}_out = Cast <to: int = {dtype}> ({x}_both)
"""
# Each table [2, positions, channels] is spread over the grid [2, T, h, w, channels].
_QK_NORM_ROPE = (
    "Predict2QkNormRope <" + _ATTENTION_NODE + ">"
    " (q, k, q_weight, k_weight, frames, rows, columns) => (q_out, k_out) {{"
    + _BOTH_NORMED
    + """
    num_frames = Shape <start: int = 1, end: int = 2> (frames)
    num_rows = Shape <start: int = 1, end: int = 2> (rows)
    num_columns = Shape <start: int = 1, end: int = 2> (columns)
    grid = Concat <axis: int = 0> (just, num_frames, num_rows, num_columns, just)
    inner = Constant <value_ints: ints = [2, 3]> ()
    outer = Constant <value_ints: ints = [1, 3]> ()
    ahead = Constant <value_ints: ints = [1, 2]> ()
    of_frame = Unsqueeze (frames, inner)
    of_row = Unsqueeze (rows, outer)
    of_column = Unsqueeze (columns, ahead)
    each_frame = Expand (of_frame, grid)
    each_row = Expand (of_row, grid)
    each_column = Expand (of_column, grid)
    on_grid = Concat <axis: int = -1> (each_frame, each_row, each_column)
    as_rows = Constant <value_ints: ints = [0, -1]> ()
    half = Shape <start: int = -1> (on_grid)
    by_token = Concat <axis: int = 0> (as_rows, half)
    of_tokens = Reshape (on_grid, by_token)
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    cos = Gather <axis: int = 0> (of_tokens, zero)
    sin = Gather <axis: int = 0> (of_tokens, one)
    """
    + _ROTATED.replace("{x}", "q").replace("{from}", "q_scaled")
    + _ROTATED.replace("{x}", "k").replace("{from}", "k_heads")
    + "}}"
)

# Every key takes part; the queries are scaled already.
_ATTENTION = (
    "Predict2Attention <" + _NODE + "> (q, k, v) => (y) {{"
    " y = Attention <scale: float = 1.0> (q, k, v) }}"
)

_TEXTS = (_MODULATE, _GATED_MODULATE, _QK_NORM, _QK_NORM_ROPE, _ATTENTION)


def add_functions(model: ir.Model, dtype: ir.DataType) -> None:
    """Give a model with fused nodes a function for each kind of them.

    Args:
        model: changed in place; one without fused nodes stays as it is.
        dtype: of its activations; the functions return it.
    """
    used = {node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN}
    for function in map(_function, _TEXTS, [dtype] * len(_TEXTS)):
        if function.name in used:
            model.functions[function.identifier()] = function
            model.opset_imports[DOMAIN] = 1


def _function(text: str, dtype: ir.DataType) -> ir.Function:
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {_OPSET}]>\n'
    proto = onnx.parser.parse_function(header + text.format(dtype=dtype.value, eps=EPS))
    function = ir.serde.deserialize_function(proto)
    for node in function:
        node.name = (
            None  # a name of its own would be there once for every call, which TensorRT warns of
        )
    return function
