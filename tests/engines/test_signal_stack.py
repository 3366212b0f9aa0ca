"""OpenVINO leaves the stack for signal handlers as it was: a process that has loaded exports survives signals."""

import ctypes
import importlib.util
import sys
import threading

import numpy as np
import pytest

from vitrail.engines.openvino import OpenVINOEngine, _Stack, keep_signal_stack

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra export (openvino)"),
    pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO installs stacks for signals on Linux"),
]


def installed():
    """Address and size of this thread's stack for signal handlers."""
    stack = _Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.start, stack.size


def doubled():
    import openvino

    operations = importlib.import_module("openvino.opset13")
    x = operations.parameter([-1, 4], np.float32, name="x")
    result = operations.add(x, x)
    x.output(0).set_names({"x"})
    result.output(0).set_names({"doubled"})
    return openvino.Model([result], [x], "doubled")


def open_one():
    engine = OpenVINOEngine(doubled(), threads=1)
    assert (engine.run({"x": np.ones((2, 4), np.float32)})["doubled"] == 2).all()
    return engine


@keep_signal_stack()
def open_by_others():
    import openvino

    return openvino.Core().compile_model(doubled(), "CPU")


def in_a_thread(step):
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()


@pytest.mark.parametrize("opened", [open_one, open_by_others])
@pytest.mark.parametrize("free", ["first opened first", "last opened first", "in a thread"])
@pytest.mark.fast_cases("first opened first-open_one", "in a thread-open_by_others")
def test_engines_leave_the_stack_of_signals(opened, free):
    before = installed()
    engines = [opened(), opened()]
    assert installed() == before
    for index in {"last opened first": (-1, -1)}.get(free, (0, 0)):
        if free == "in a thread":
            in_a_thread(lambda index=index: engines.pop(index))
        else:
            engines.pop(index)
        assert installed() == before


def test_the_stack_is_restored_after_an_error():
    before = installed()
    with pytest.raises(RuntimeError, match="INFERENCE_NUM_THREADS"):
        OpenVINOEngine(doubled(), threads=-1).run({"x": np.ones((1, 4), np.float32)})
    assert installed() == before
