"""Ctrl-C and SIGTERM finish the batch, keep the finished epochs and give the kernel back."""

import multiprocessing
import os
import signal
import sys
import threading

import pytest
from torch.utils.data import DataLoader

from conftest import QUIET, TinyNet, random_batches
from eva_utils import main as engine
from eva_utils.utils.checkpoint import load_weights
from runs import assert_equal_weights


class Signalling:
    """A loader during one of whose batches this process gets a signal; counts the batches asked for."""

    def __init__(self, number, at, again=False):
        self.batches = list(DataLoader(random_batches(22), batch_size=4))
        self.number, self.at, self.again, self.epoch, self.asked = number, at, again, 0, []

    def __len__(self):
        return len(self.batches)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for place, batch in enumerate(self.batches):
            if (self.epoch, place) == self.at:
                os.kill(os.getpid(), self.number)
                if self.again:
                    os.kill(os.getpid(), self.number)
            self.asked.append((self.epoch, place))
            yield batch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", [0, 3, 5])
def test_the_batch_is_finished_and_the_last_epoch_kept(number, place, tmp_path):
    before = signal.getsignal(number)
    model, loader, lines = TinyNet(), Signalling(number, (3, place)), []
    history = engine.fit(model, loader, loader.batches, epochs=5, checkpoint=tmp_path, **{**QUIET, "log": lines.append})
    assert loader.asked[-1] == (3, place)
    assert len(history) == 2 and lines[-1].startswith("Stopped in epoch 3: weights and history are those of the 2")
    assert_equal_weights(model.state_dict(), load_weights(TinyNet(), tmp_path, "last").state_dict())
    assert signal.getsignal(number) == before


def test_a_second_one_stops_at_once():
    model, loader = TinyNet(), Signalling(signal.SIGINT, (2, 3), again=True)
    history = engine.fit(model, loader, loader.batches, epochs=3, **QUIET)
    assert len(history) == 1 and loader.asked[-1] == (2, 2)  # not even handed to the model


class Dying(Signalling):
    """A loader that fails after its second epoch."""

    def __init__(self, fail):
        super().__init__(signal.SIGTERM, (9, 9))
        self.fail = fail

    def __iter__(self):
        yield from super().__iter__()
        if self.epoch == 2:
            self.fail()


def lose_the_other_end(act):
    here, there = multiprocessing.Pipe()
    there.close()
    act(here)


@pytest.mark.parametrize("act", [lambda here: here.recv(), lambda here: here.send(1)], ids=["end", "broken"])
def test_a_worker_that_dies_while_it_hands_a_batch_over_is_named(act):
    loader = Dying(lambda: lose_the_other_end(act))
    with pytest.raises(RuntimeError, match="a DataLoader worker exited unexpectedly while it handed") as caught:
        engine.fit(TinyNet(), loader, loader.batches, epochs=3, **QUIET)
    assert len(caught.value.history) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs an interval timer")
def test_the_message_of_a_signal_that_comes_a_little_later_is_the_one_told():
    """As torch's of a dead worker, which may come after the connection to it is lost."""

    def tell(number, frame):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    def fail():
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        lose_the_other_end(lambda here: here.recv())

    before = signal.signal(signal.SIGALRM, tell)
    try:
        loader = Dying(fail)
        with pytest.raises(RuntimeError, match=r"^DataLoader worker \(pid 7\) is killed"):
            engine.fit(TinyNet(), loader, loader.batches, epochs=3, **QUIET)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_lost_connection_of_the_dataset_is_not_laid_on_a_worker():
    def fail():
        raise ConnectionResetError("the server of the images hung up")

    loader = Dying(fail)
    with pytest.raises(ConnectionResetError, match="the server of the images hung up"):
        engine.fit(TinyNet(), loader, loader.batches, epochs=3, **QUIET)


def test_handlers_are_put_back_after_a_run_and_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    loader = DataLoader(random_batches(8), batch_size=4)
    engine.fit(TinyNet(), loader, loader, epochs=1, **QUIET)
    with pytest.raises(ValueError, match=r"criterion failed on .*: labels$"):
        engine.fit(TinyNet(), loader, loader, epochs=1, criterion=broken, **QUIET)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        loader = Signalling(signal.SIGINT, (1, 2))
        assert len(engine.fit(TinyNet(), loader, loader.batches, epochs=1, **QUIET)) == 1
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_workers_that_the_signal_reached_first_are_a_stop_too():
    class Worker(Signalling):
        def __iter__(self):
            for batch in super().__iter__():
                if self.asked[-1] == (2, 3):
                    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
                yield batch

    loader = Worker(signal.SIGTERM, (2, 3))
    assert len(engine.fit(TinyNet(), loader, loader.batches, epochs=3, **QUIET)) == 1
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        engine.fit(TinyNet(), Worker(signal.SIGTERM, None), loader.batches, epochs=3, **QUIET)


def broken(logits, labels):
    raise RuntimeError("labels")


def test_a_run_in_a_thread_trains_without_handlers():
    loader, found = DataLoader(random_batches(8), batch_size=4), []
    thread = threading.Thread(target=lambda: found.append(engine.fit(TinyNet(), loader, loader, epochs=1, **QUIET)))
    thread.start()
    thread.join()
    assert len(found[0]) == 1
