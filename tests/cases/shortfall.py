"""In which cases does less go than could, and why?

Names of cases to the reason; the test of a case that improves fails until its line is taken out.
"""

from __future__ import annotations

_GATE_STAYS = "what goes goes, but the values of the open gates stay as a product: it is not folded through here"

SHORTFALL: dict[str, str] = {
    **dict.fromkeys(
        (
            "embedding_whose_features_are_gated",
            "product_of_two_branches_closed_in_different_places",
            "outer_sum_of_a_vector_and_rows",
            "gemm_with_transposed_activation",
            "weights_on_the_left_of_matmul",
        ),
        _GATE_STAYS,
    ),
    "one_activation_against_two_weights_by_broadcasting": "constants meet a weight with a batch dimension",
    "one_initializer_that_is_bias_and_offset": "the offset keeps its own copy of the vector",
    "concat_along_rows": "the constants of one part differ from those of the other",
    "gemm_of_constants_with_beta_zero": "the bias that is multiplied by zero is kept",
}
