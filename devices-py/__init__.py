# SPDX-License-Identifier: Apache-2.0
"""Devices that stand alone: one per file, written on the public API only."""
