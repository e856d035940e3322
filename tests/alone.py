"""Processes of their own for tests, forked from one that has imported torch: there in a moment, and without threads."""

import multiprocessing

import pytest

METHODS = multiprocessing.get_all_start_methods()
ALONE = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else None)
if "forkserver" in METHODS:
    ALONE.set_forkserver_preload(["torch._dynamo", "torch.distributed.nn", "eva_utils.main", "eva_utils.utils.loader"])

needs_alone = pytest.mark.skipif("forkserver" not in METHODS, reason="needs processes that fork")
