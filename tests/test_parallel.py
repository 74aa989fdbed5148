"""Work shared between threads gives what one thread gives, in order."""

import threading
import time
from functools import partial

import pytest
import torch

import boltztilt as bt
from boltztilt.hardware import n_workers
from boltztilt.parallel import finish_alone, in_threads, share_size

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_keep_the_order_of_the_tasks(n_threads):
    tasks = [partial(pow, k, 2) for k in range(20)]
    assert list(in_threads(tasks, CPU)) == [k**2 for k in range(20)]


def test_an_operation_inside_a_task_runs_on_one_thread(n_threads):
    counts = list(in_threads([torch.get_num_threads] * 8, CPU))
    assert counts == [1] * 8
    assert torch.get_num_threads() == n_threads


def test_nothing_runs_beside_a_task_that_finishes_alone(n_threads):
    running, beside, lock = [0], [], threading.Lock()

    def count(change):
        with lock:
            running[0] += change
            return running[0]

    def task(number):
        count(1)
        if number % 3 == 0:
            count(-1)  # a task that waits does not run
            finish_alone()
            finish_alone()  # as a second first call of the same task
            beside.append(count(1))
        time.sleep(0.01)
        if number % 3 == 0:
            beside.append(running[0])
        count(-1)
        return number

    assert list(in_threads([partial(task, k) for k in range(12)], CPU)) == list(range(12))
    assert beside == [1] * 8


def test_others_go_on_after_an_error_in_a_task_that_finishes_alone(n_threads):
    def task():
        finish_alone()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(in_threads([task, task], CPU))
    assert list(in_threads([partial(abs, -1)] * 3, CPU)) == [1, 1, 1]


def test_outside_of_tasks_nothing_has_to_be_waited_for(n_threads):
    finish_alone()


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
