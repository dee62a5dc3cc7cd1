"""Tries an installed wheel, in an environment that holds nothing else but torch.

With --cuda, one that has the CUDA kernels, on a machine that has neither nvcc nor a GPU.
"""

import shutil
import subprocess
import sys

import torch

import fastrnn

subprocess.run([sys.executable, "-m", "fastrnn"], check=True)

ours, theirs = fastrnn.LSTM(5, 7), torch.nn.LSTM(5, 7)
ours.load_state_dict(theirs.state_dict())
x = torch.randn(11, 3, 5)
for module in (ours, theirs):
    module(x)[0].square().sum().backward()
torch.testing.assert_close(ours(x)[0], theirs(x)[0])
for ours_parameter, theirs_parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
    torch.testing.assert_close(ours_parameter.grad, theirs_parameter.grad)


def refused(call) -> str:
    """Return what a call that must fail says."""
    try:
        call()
    except (AssertionError, RuntimeError) as error:  # torch raises the former without a driver
        return str(error).splitlines()[0]
    raise SystemExit("a CUDA call passed without a GPU")


if "--cuda" in sys.argv:
    from fastrnn import _cuda, _cuda_device

    assert not shutil.which("nvcc"), "this must be tried without nvcc in the path"
    assert not torch.cuda.is_available(), "this must be tried without a GPU"
    assert _cuda.has_kernels, "the wheel has no CUDA kernels"
    assert "no device" in refused(_cuda.device_properties)
    reason = refused(_cuda_device.engine)
    assert "driver" in reason, reason
    print(f"without a GPU a call says: {reason}")
print(f"fastrnn {fastrnn.__version__} from {fastrnn.__file__}: smoke test passed")
