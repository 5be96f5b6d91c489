# SPDX-License-Identifier: Apache-2.0
"""The labelling stage: people say which answer is better, on a local page. No JAX."""
