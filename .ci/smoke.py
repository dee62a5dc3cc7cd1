"""Tries an installed wheel, in an environment that holds nothing else but torch."""

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
print(f"fastrnn {fastrnn.__version__} from {fastrnn.__file__}: smoke test passed")
