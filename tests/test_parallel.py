"""Work shared between threads gives what one thread gives, in order."""

import threading
from functools import partial

import pytest
import torch

import boltztilt as bt
from boltztilt.parallel import in_threads, n_workers, share_size

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("first_alone", [False, True])
def test_results_keep_the_order_of_the_tasks(n_threads, first_alone):
    tasks = [partial(pow, k, 2) for k in range(20)]
    assert list(in_threads(tasks, CPU, first_alone)) == [k**2 for k in range(20)]


def test_an_operation_inside_a_task_runs_on_one_thread(n_threads):
    counts = list(in_threads([torch.get_num_threads] * 8, CPU))
    assert counts == [1] * 8
    assert torch.get_num_threads() == n_threads


def test_the_first_and_last_task_end_before_the_others_start(n_threads):
    running, most, lock = [0], {}, threading.Lock()

    def task(number):
        with lock:
            running[0] += 1
            most[number] = running[0]
        torch.randn(200, 200) @ torch.randn(200, 200)
        with lock:
            running[0] -= 1

    list(in_threads([partial(task, k) for k in range(12)], CPU, first_alone=True))
    assert most[0] == most[11] == 1


def test_an_error_in_a_task_reaches_the_caller(n_threads):
    with pytest.raises(ZeroDivisionError):
        list(in_threads([partial(divmod, 1, k) for k in (1, 0, 1)], CPU))


@pytest.mark.parametrize(("n", "at_most"), [(64, 13), (997, 13), (5, 100), (1, 1), (12, 1)])
def test_shares_fit_and_leave_no_worker_idle(n_threads, n, at_most):
    size = share_size(n, at_most, CPU)
    assert 1 <= size <= at_most
    assert size <= -(-n // n_workers(CPU))


def test_samples_do_not_depend_on_the_threads(n_threads):
    sampler = bt.Sampler.load("dw4")
    found = sampler.sample(50, seed=3, n_steps=6, batch_size=7)
    expected = sampler.sample(50, seed=3, n_steps=6, batch_size=50)
    torch.testing.assert_close(found.positions, expected.positions, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.log_density, expected.log_density, atol=1e-3, rtol=0)
