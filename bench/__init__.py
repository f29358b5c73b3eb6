# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: ratios beside the bounds of the design. See README.md."""
