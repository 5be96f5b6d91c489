# SPDX-License-Identifier: Apache-2.0
"""Which parameters are quantised by default. No JAX, so that configs can import it."""

# Regular expressions that are searched in a parameter's name: the matrices, but not the router of
# a mixture of experts, whose near-ties decide which experts are used.
QUANTIZED = r"(kernel|embedding)$"
KEPT = r"router"
# The matrices that pruning sets zeros in: not embeddings nor the output head, as published.
PRUNED = r"kernel$"
WHOLE = r"router|lm_head"
