"""Products of matrices: who computes them, and that they stay as exact as they were; memory."""

import platform
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from boltztilt import hardware
from boltztilt.hardware import (
    fast_products,
    full_precision_products,
    keep_freed_memory,
    one_thread,
)
from boltztilt.parallel import in_threads

settings = getattr(torch.backends.mkldnn, "matmul", None)
needs_choice = pytest.mark.skipif(
    not hasattr(settings, "fp32_precision"), reason="this torch has no choice of libraries"
)


@pytest.fixture
def as_amd(monkeypatch):
    """Judges the processor anew, as one of the given vendor."""

    def pretend(vendor):
        monkeypatch.setattr(hardware, "_processor", lambda what: vendor)
        hardware._onednn_is_faster.cache_clear()

    yield pretend
    hardware._onednn_is_faster.cache_clear()


@needs_choice
def test_products_are_as_exact_as_single_precision(generator):
    left, right = (torch.randn(20, 100, 100, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    with fast_products():
        product = left @ right
        flat = left.flatten(0, 1) @ right[0]
    torch.testing.assert_close(product.double(), exact, atol=2e-4, rtol=0)
    torch.testing.assert_close(
        flat.double(), left.flatten(0, 1).double() @ right[0].double(), atol=2e-4, rtol=0
    )


@needs_choice
def test_settings_are_put_back_after_an_error(as_amd):
    as_amd("AuthenticAMD")
    before = settings.fp32_precision
    with pytest.raises(KeyError), fast_products():
        raise KeyError
    assert settings.fp32_precision == before


@needs_choice
def test_settings_are_put_back_when_the_last_thread_is_done(as_amd):
    as_amd("AuthenticAMD")
    before = settings.fp32_precision
    first, second = fast_products(), fast_products()
    first.__enter__()
    second.__enter__()
    assert full_precision_products()
    first.__exit__(None, None, None)
    assert settings.fp32_precision != before
    second.__exit__(None, None, None)
    assert settings.fp32_precision == before
    assert torch.get_float32_matmul_precision() == "highest"
    assert full_precision_products()


@needs_choice
def test_other_processors_keep_their_library(as_amd):
    as_amd("GenuineIntel")
    before = settings.fp32_precision
    with fast_products():
        assert settings.fp32_precision == before


@needs_choice
def test_a_library_that_rounds_is_not_used(as_amd, monkeypatch):
    as_amd("AuthenticAMD")
    multiply = torch.Tensor.__matmul__

    def rounded(left, right):
        product = multiply(left, right)
        return product.bfloat16().float() if product.dtype == torch.float32 else product

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    before = settings.fp32_precision
    with fast_products():
        assert settings.fp32_precision == before


def threads_of_a_new_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def alone():
    with one_thread():
        return torch.get_num_threads()


def test_one_thread_is_one_until_it_ends(two_threads):
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    assert threads_of_a_new_thread() == 2


def test_one_thread_in_a_worker_leaves_new_threads_as_they_were(two_threads):
    assert list(in_threads([alone] * 4, torch.device("cpu"))) == [1] * 4
    assert torch.get_num_threads() == 2
    assert threads_of_a_new_thread() == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_not_asked_for_again():
    def pages_touched_first() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(50):
            torch.ones(2_000_000)  # 8 MB, 2,000 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    pages_touched_first()
    assert pages_touched_first() < 5_000


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(hardware.ctypes, "CDLL", None)
    keep_freed_memory()
