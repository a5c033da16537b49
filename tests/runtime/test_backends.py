"""What an engine does to the process that it runs in."""

import subprocess
import sys

import numpy as np
import pytest


# It is loaded here and let go of in another thread, as the garbage collector may; then a signal comes.
LET_GO = """
import faulthandler, gc, pathlib, signal, subprocess, sys, threading
import numpy as np
from siglip_ext_runtime.backends import BACKENDS

faulthandler.enable()
signal.signal(signal.SIGCHLD, lambda *_: print("signal", flush=True))
for _ in range(2):
    held = [BACKENDS[sys.argv[1]](pathlib.Path(sys.argv[2]))]
    print(held[0]({"x": np.array([[-1.0, 2.0]])})["y"].tolist())
    thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
    thread.start()
    thread.join()
    subprocess.run([sys.executable, "-S", "-c", ""], check=True)
"""


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_a_model_may_be_let_go_of_in_any_thread(backend, tmp_path):
    ov = pytest.importorskip("openvino", reason="needs the extra openvino")
    helper = pytest.importorskip("onnx", reason="needs the extra onnx").helper
    if backend == "openvino":
        x = ov.opset13.parameter([-1, 2], np.float32, name="x")
        y = ov.opset13.relu(x)
        y.output(0).set_names({"y"})
        x.output(0).set_names({"x"})
        path = tmp_path / "relu.xml"
        ov.save_model(ov.Model([y], [x]), path)
    else:
        x, y = (helper.make_tensor_value_info(name, 1, ["n", 2]) for name in "xy")
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
        path = tmp_path / "relu.onnx"
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path.write_bytes(model.SerializeToString())
    done = subprocess.run([sys.executable, "-c", LET_GO, backend, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[[0.0, 2.0]]") == 2
    assert done.stdout.endswith("signal\n")
